"""A table of the paper: the paper's figures (conf/table, and the rows of conf/experiment) and our records' figures."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stn.experiments.identity import normal
from stn.experiments.results.cells import TEST_IMAGES, Cell
from stn.experiments.results.records import Record
from stn.experiments.yaml_files import read_yaml

# overrides that leave a run in its row; with others that are not redundant it is an experiment of its own, in no table
NEUTRAL = {"experiment", "table", "schedule", "seed", "budget", "runs_dir", "device", "devices", "accumulate",
           "threads", "precision", "checkpoint_every_s", "pictures", "progress", "data.root"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows are experiments, columns values of one config key, `paper` the printed figures by row and column.

    `borrowed` rows belong to another table and are shown for comparison: their records alone do not make a table.
    `data` names the data sets whose runs count; if it is empty, these are the ones that the experiments choose.
    """

    name: str
    title: str
    metric: str
    unit: str
    column_key: str
    columns: dict[str, str]
    rows: dict[str, str]
    paper: dict[str, dict[str, float]]
    notes: list[str]
    borrowed: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)

    @property
    def own_keys(self) -> set[str]:
        """The overrides that choose the column, data.distortion.name also as the group data/distortion, or the data."""
        column = {self.column_key, self.column_key.removesuffix(".name").replace(".", "/")}
        return column | ({"data"} if self.data else set())


def load(path: Path) -> Table:
    """The table of one file of conf/table; label and figures of a row come from its file in conf/experiment.

    A row of the file is an experiment, or {experiment: a label for this table}.
    """
    settings = read_yaml(path)["table"]
    same_column = settings.pop("paper_column", {})
    rows, paper, borrowed = {}, {}, []
    for entry in settings.pop("rows"):
        name, label = next(iter(entry.items())) if isinstance(entry, dict) else (entry, None)
        row = _row(path, name)
        rows[name] = label or row["label"]
        printed = _row(path, row["paper_of"])["paper"] if "paper_of" in row else row["paper"]
        figures = {str(column): float(figure) for column, figure in printed.items()}
        of_columns = {column: figures.get(same_column.get(column, column)) for column in settings["columns"]}
        paper[name] = {column: figure for column, figure in of_columns.items() if figure is not None}
        if row["table"] != settings["name"]:
            borrowed.append(name)
    if len(borrowed) == len(rows):  # all rows are another table's, but in this table's own columns
        borrowed = []
    if not any(paper[name] for name in rows if name not in borrowed):  # a borrowed row's figures do not count alone
        paper = {}
    return Table(
        **settings, rows=rows, paper={name: figures for name, figures in paper.items() if figures}, borrowed=borrowed
    )


def _row(table: Path, experiment: str) -> dict[str, Any]:
    """The `row` of an experiment's file."""
    row: dict[str, Any] = read_yaml(table.parents[1] / "experiment" / f"{experiment}.yaml")["row"]
    return row


def own_schedules(file: Path) -> dict[str, str]:
    """The schedule of every row of a table's file: that of its sweep, else of its experiment, else the default."""
    content, conf = read_yaml(file), file.parents[1]
    swept, usual = content["hydra"]["sweeper"]["params"].get("schedule"), _schedule_in(conf / "config.yaml")
    rows = [next(iter(row)) if isinstance(row, dict) else row for row in content["table"]["rows"]]
    return {row: swept or _schedule_in(conf / f"experiment/{row}.yaml") or usual for row in rows}


def _schedule_in(file: Path) -> str:
    """The schedule that a config file chooses, empty if it chooses none."""
    choices = [entry for entry in read_yaml(file).get("defaults", []) if isinstance(entry, dict)]
    return next((str(c[key]) for c in choices for key in c if key.split("/")[-1] == "schedule"), "")


def schedule(conf: Path, name: str) -> dict[str, Any]:
    """A file of conf/schedule.  Raises ValueError if there is none of that name."""
    known = {path.stem: path for path in sorted((conf / "schedule").glob("*.yaml"))}
    if name not in known:
        raise ValueError(f"unknown --schedule {name}: choose one of {', '.join(known)}")
    settings: dict[str, Any] = read_yaml(known[name])
    return settings


def column_of(table: Table, record: Record) -> str:
    """The value of the table's column key in a record's config, empty if it has no such key."""
    value: Any = record["config"]
    for part in table.column_key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def has_cell(table: Table, record: Record) -> bool:
    """Whether a record is of one of the table's experiments, on its data, in one of its columns."""
    if record["experiment"] not in table.rows:
        return False
    if table.data and record["config"]["data"].get("name") not in table.data:
        return False
    return column_of(table, record) in table.columns


def belongs(table: Table, record: Record) -> bool:
    """Whether a record belongs to its cell of this table: no override changes its experiment."""
    needed = [word for word in record["overrides"] if word not in record.get("redundant", [])]  # older records lack it
    foreign = {_key(word) for word in needed if not is_neutral(word)} - table.own_keys
    return has_cell(table, record) and not foreign


def is_neutral(override: str) -> bool:
    """Whether an override leaves a run in its row."""
    return _key(override) in NEUTRAL or _key(override).startswith(("hydra", "logger"))


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def alike(table: Table, records: list[Record]) -> list[Record]:
    """Of records that belong to a table, those that were computed as the newest of their cell was.

    Runs of other code (`revisions`) or other settings, such as the number of steps, do not make a mean with it.
    """

    def cell(record: Record) -> tuple[Any, ...]:
        return *cell_of(table, record), record["schedule"], record["budget"], record["synthetic"]

    def how(record: Record) -> tuple[Any, ...]:
        settings = normal(record["config"])
        settings["data"] = {key: value for key, value in settings["data"].items() if key != "seed"}
        return settings, record["revisions"]

    newest = {cell(r): how(r) for r in sorted(records, key=lambda r: r.get("finished_at") or "")}
    return [record for record in records if how(record) == newest[cell(record)]]


def cell_of(table: Table, record: Record) -> tuple[str, str]:
    """The row and the column of a record that belongs to the table, as its config has them."""
    return record["experiment"], column_of(table, record)


def seconds_per_step(records: list[Record], overrides: list[str]) -> float | None:
    """Seconds per training step in the records of the same cell, for any seed and schedule; None if there are none."""

    def cell(words: list[str]) -> set[str]:
        return {word for word in words if word.startswith("experiment=") or not is_neutral(word)}

    took = [r["seconds"] / r["steps"] for r in records
            if r["status"] == "finished" and cell(r["overrides"]) == cell(overrides)]  # fmt: skip
    return statistics.fmean(took) if took else None


def schedules(table: Table, records: list[Record]) -> list[tuple[str, int | None]]:
    """The (schedule, budget) pairs with records in the table: most cells first, then the longest schedule."""
    steps: dict[tuple[str, int | None], int] = {}
    run: dict[tuple[str, int | None], set[tuple[str, str]]] = {}
    for record in records:
        if belongs(table, record):
            pair = (record["schedule"], record["budget"])
            run.setdefault(pair, set()).add(cell_of(table, record))
            if record["experiment"] not in table.borrowed:
                steps[pair] = max(record["steps"], steps.get(pair, 0))
    return sorted(steps, key=lambda pair: (-len(run[pair]), -steps[pair], pair[0], pair[1] or 0))


def blocks(table: Table, records: list[Record]) -> list[tuple[list[Record], str, int | None]]:
    """The blocks that are shown as one table each: by kind of data (synthetic last), schedule and budget."""
    kinds = [[r for r in records if r["synthetic"] is synthetic] for synthetic in (False, True)]
    return [(kind, *pair) for kind in kinds for pair in schedules(table, kind)]


def cells(table: Table, records: list[Record], schedule: str, budget: int | None) -> list[Cell]:
    """Every cell of the table, row by row; a cell without a record has no values."""
    found: dict[tuple[str, str], dict[int, Record]] = {}
    mine = [r for r in records if belongs(table, r) and (r["schedule"], r["budget"]) == (schedule, budget)]
    for record in alike(table, mine):  # a seed counts once, although another precision makes another run
        found.setdefault(cell_of(table, record), {}).setdefault(record["seed"], record)
    result = []
    for experiment, row in table.rows.items():
        for value, column in table.columns.items():
            runs = list(found.get((experiment, value), {}).values())
            data = runs[0]["config"]["data"].get("name") if runs else None
            images = (runs[0].get("test_images") if runs else None) or TEST_IMAGES.get(str(data))
            if images and data == "colocalisation":  # every seed has its own images
                images *= len(runs)
            result.append(
                Cell(
                    row=row,
                    column=column,
                    schedule=schedule,
                    budget=budget,
                    params=runs[0]["params"] if runs else None,
                    values=[float(r["metrics"][table.metric]) for r in runs if table.metric in r["metrics"]],
                    failed=sum(r["status"] == "failed" for r in runs),
                    paper=table.paper.get(experiment, {}).get(value),
                    synthetic=any(r["synthetic"] for r in runs),
                    images=images,
                )
            )
    return result
