"""A table of the paper: what it reports (conf/table, and the rows of conf/experiment) beside what our records hold."""

import csv
import io
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stn.experiments.results.cells import BESIDE, SPREAD, TEST_IMAGES, Cell
from stn.experiments.results.records import Record, replace

__all__ = ["Cell", "Table", "belongs", "blocks", "cells", "column_of", "describe", "grid", "into_page", "legend",
           "load", "markdown", "place", "schedule", "schedules", "seconds_per_step", "tally", "write"]  # fmt: skip

CSV_COLUMNS = ("row", "column", "schedule", "budget", "params", "n", "mean", "std", "paper", "synthetic")
# overrides that leave a run what its row says; with any other one it is an experiment of its own and in no table
NEUTRAL = {"experiment", "table", "schedule", "seed", "budget", "runs_dir", "device", "devices", "accumulate",
           "threads", "precision", "checkpoint_every_s", "pictures", "progress", "logger", "data.root",
           "data"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows are experiments, columns values of one config key, `paper` the printed figures by row and column.

    `borrowed` rows are another table's, shown for comparison: their records alone make no table.
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

    @property
    def own_keys(self) -> set[str]:
        """How an override may choose the column: data.distortion.name also as the group data/distortion."""
        return {self.column_key, self.column_key.removesuffix(".name").replace(".", "/")}


def load(path: Path) -> Table:
    """The table of one file of conf/table; label and figures of a row come from its file in conf/experiment.

    A row of the file is an experiment, or {experiment: a label for this table}.
    """
    settings = yaml.safe_load(path.read_text())["table"]
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
    if len(borrowed) == len(rows):  # another table's models, all of them, in columns that are this table's own
        borrowed = []
    if not any(paper[name] for name in rows if name not in borrowed):  # nor is then a borrowed row's figure one of it
        paper = {}
    return Table(
        **settings, rows=rows, paper={name: figures for name, figures in paper.items() if figures}, borrowed=borrowed
    )


def _row(table: Path, experiment: str) -> dict[str, Any]:
    """What an experiment's file says of its row."""
    return yaml.safe_load((table.parents[1] / "experiment" / f"{experiment}.yaml").read_text())["row"]


def schedule(conf: Path, name: str) -> dict[str, Any]:
    """A file of conf/schedule.  Raises ValueError where there is none of that name."""
    known = {path.stem: path for path in sorted((conf / "schedule").glob("*.yaml"))}
    if name not in known:
        raise ValueError(f"unknown --schedule {name}: choose {', '.join(known)}")
    return yaml.safe_load(known[name].read_text())


def column_of(table: Table, record: Record) -> str:
    """The value of the table's column key in a record's config, empty where it has no such key."""
    value: Any = record["config"]
    for part in table.column_key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def belongs(table: Table, record: Record) -> bool:
    """Whether a record is one of this table's: one of its experiments, as it stands, in one of its columns.

    Another data set (data=NAME) with the same columns counts too: synthetic data have a block of their own.
    """
    if record["experiment"] not in table.rows:
        return False
    keys = {override.split("=")[0].lstrip("+~") for override in record["overrides"]}
    foreign = {key for key in keys - NEUTRAL - table.own_keys if not key.startswith(("hydra", "logger"))}
    return not foreign and column_of(table, record) in table.columns


def place(table: Table, record: Record) -> tuple[str, str]:
    """The row and the column of a record that belongs to the table, as its config has them."""
    return record["experiment"], column_of(table, record)


def seconds_per_step(records: list[Record], overrides: list[str]) -> float | None:
    """What one training step took in the records of the same cell, whatever their seeds and schedules."""

    def cell(words: list[str]) -> set[str]:
        return {w for w in words if w.startswith("experiment=") or w.split("=")[0] not in NEUTRAL}

    took = [r["seconds"] / r["steps"] for r in records
            if r["status"] == "finished" and cell(r["overrides"]) == cell(overrides)]  # fmt: skip
    return statistics.fmean(took) if took else None


def schedules(table: Table, records: list[Record]) -> list[tuple[str, int | None]]:
    """The (schedule, budget) pairs that the table has records of: the one with most cells first, then the longest."""
    steps: dict[tuple[str, int | None], int] = {}
    run: dict[tuple[str, int | None], set[tuple[str, str]]] = {}
    for record in records:
        if belongs(table, record):
            pair = (record["schedule"], record["budget"])
            run.setdefault(pair, set()).add(place(table, record))
            if record["experiment"] not in table.borrowed:
                steps[pair] = max(record["steps"], steps.get(pair, 0))
    return sorted(steps, key=lambda pair: (-len(run[pair]), -steps[pair], pair[0], pair[1] or 0))


def blocks(table: Table, records: list[Record]) -> list[tuple[list[Record], str, int | None]]:
    """What is one table each: the records of collected data, then of synthetic ones, by schedule and budget."""
    kinds = [[r for r in records if r["synthetic"] is synthetic] for synthetic in (False, True)]
    return [(kind, *pair) for kind in kinds for pair in schedules(table, kind)]


def cells(table: Table, records: list[Record], schedule: str, budget: int | None) -> list[Cell]:
    """Every cell of the table, row by row; one without a record has no values."""
    found: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        if belongs(table, record) and (record["schedule"], record["budget"]) == (schedule, budget):
            column = column_of(table, record)
            # a seed counts once, though precision=fp32 beside one that the machine chose is a run of its own
            found.setdefault((record["experiment"], column), {}).setdefault(record["seed"], record)
    result = []
    for experiment, row in table.rows.items():
        for value, column in table.columns.items():
            mine = list(found.get((experiment, value), {}).values())
            data = mine[0]["config"]["data"].get("name") if mine else None
            images = TEST_IMAGES.get(str(data))
            if images and data == "colocalisation":  # every seed has images of its own
                images *= len(mine)
            result.append(
                Cell(
                    row=row,
                    column=column,
                    schedule=schedule,
                    budget=budget,
                    params=mine[0]["params"] if mine else None,
                    values=[float(r["metrics"][table.metric]) for r in mine if table.metric in r["metrics"]],
                    failed=sum(r["status"] == "failed" for r in mine),
                    paper=table.paper.get(experiment, {}).get(value),
                    synthetic=any(r["synthetic"] for r in mine),
                    images=images,
                )
            )
    return result


def grid(table: Table, found: list[Cell]) -> list[list[str]]:
    """The table as text, header first, without the rows of which nothing was run.

    A cell reads ours and the paper's, or ours alone where the paper has no figures.
    """
    rows = [[f"{table.unit}, ours / paper" if table.paper else table.unit, *table.columns.values()]]
    width = len(table.columns)
    for i in range(0, len(found), width):
        line = found[i : i + width]
        if any(cell.values or cell.failed for cell in line):
            rows.append([line[0].row, *(cell.beside() if table.paper else str(cell) for cell in line)])
    return rows


def describe(records: list[Record], table: Table, schedule: str, budget: int | None) -> str:
    """A few words: the data where they are synthetic, schedule, steps, size, seeds, time, machine and precision."""
    mine = [r for r in records if belongs(table, r) and (r["schedule"], r["budget"]) == (schedule, budget)]
    finished = [r for r in mine if r["status"] == "finished"]
    data = ", ".join(sorted({r["config"]["data"]["name"] for r in mine}))
    synthetic = f"**Synthetic data: {data}.**  " if any(r["synthetic"] for r in mine) else ""
    if not finished:
        sized = "" if budget is None else f", at most {budget:,} trainable parameters"
        return f"{synthetic}Schedule `{schedule}`{sized}: no run has finished."
    seeds = sorted({r["seed"] for r in finished})
    hours = sum(r["seconds"] for r in finished) / 3600
    seed, run = "seed" + "s" * (len(seeds) > 1), "run" + "s" * (len(finished) > 1)
    devices = sorted({f"{r['device']}, {r['threads']} thread{'s' if r['threads'] > 1 else ''}" for r in finished})
    precision = " or ".join(sorted({r["precision"] for r in finished}))
    return (
        f"{synthetic}Schedule `{schedule}`: {_steps(table, finished)}; {_size(finished, budget)}; "
        f"{seed} {', '.join(map(str, seeds))}; {len(finished)} {run}, {hours:.1f} hours of training in all "
        f"on {'; '.join(devices)}, in {precision}."
    )


def _steps(table: Table, finished: list[Record]) -> str:
    """6,000 steps of 64 images; where they differ, of which classifier, or of which row if it has none in its label."""
    kinds: dict[tuple[int, int | None], list[str]] = {}
    for record in sorted(finished, key=lambda r: list(table.rows).index(r["experiment"])):
        label = table.rows[record["experiment"]]
        classifier = re.search("FCN|CNN", label)
        kind = classifier.group() if classifier else label
        of_kind = kinds.setdefault((record["steps"], record["config"]["schedule"].get("batch_size")), [])
        if kind not in of_kind:
            of_kind.append(kind)
    texts = {pair: f"{pair[0]:,} steps" + (f" of {pair[1]} images" if pair[1] else "") for pair in kinds}
    if len(kinds) == 1:
        return "".join(texts.values())
    return ", ".join(f"{texts[pair]} ({', '.join(of_kind)})" for pair, of_kind in kinds.items())


def _size(finished: list[Record], budget: int | None) -> str:
    """How large the networks are, and by which rule."""
    if budget is not None:
        return f"at most {budget:,} trainable parameters in every model"
    params, model = [r["params"] for r in finished], finished[0]["config"]["model"]
    if "budget" in model:
        rule = "the widths that the paper states (256 units, 64 filters), "
    elif "width" in model:
        rule = f"{model['width']} x the paper's widths, "
    else:
        rule = ""
    same = min(params) == max(params)
    return f"{rule}{min(params):,}{'' if same else f' to {max(params):,}'} trainable parameters"


def tally(found: list[Cell]) -> str:
    """How often ours lies below the paper's figure, within the error of both, and above; empty where none compares."""
    counts = Counter(cell.relation for cell in found)
    compared = sum(counts[sign] for sign in "<≈>")
    if not compared:
        return ""
    sums = f"{counts['<']} below, {counts['≈']} level, {counts['>']} above"
    return f"Beside the paper's {compared} figure{'s' if compared > 1 else ''}: {sums}."


def legend(table: Table) -> str:
    """How to read a cell."""
    return f"{SPREAD}  {BESIDE}" if table.paper else SPREAD


def markdown(table: Table, records: list[Record], best: bool = False) -> str:
    """One Markdown table per kind of data, schedule and budget, each under a sentence that says what it shows.

    With `best` the first of them alone (`schedules`).
    """
    parts = []
    for block, schedule, budget in blocks(table, records)[: 1 if best else None]:
        found = cells(table, block, schedule, budget)
        header, *body = grid(table, found)
        lines = [header, ["---"] * len(header), *body]
        parts.append(f"{describe(block, table, schedule, budget)}  {tally(found)}".strip())
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    if not parts:
        return "No records yet."
    notes = [legend(table), *table.notes]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


def into_page(page: str, table: Table, records: list[Record]) -> str:
    """A Markdown page with the best block of the table between its lines `<!-- <name> -->` and `<!-- /<name> -->`."""
    start, end = f"<!-- {table.name} -->", f"<!-- /{table.name} -->"
    if start not in page or end not in page:
        return page
    before, after = page.split(start)[0], page.split(end)[1]
    return f"{before}{start}\n\n{markdown(table, records, best=True)}\n\n{end}{after}"


def write(folder: Path, table: Table, records: list[Record]) -> list[Path]:
    """The table as <folder>/<name>.md and .csv; the CSV has one line per row, column and schedule (`CSV_COLUMNS`).

    Returns which of the two files say anything new.
    """
    folder.mkdir(exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for block, schedule, budget in blocks(table, records):
        for cell in cells(table, block, schedule, budget):
            line = (cell.row, cell.column, schedule, budget, cell.params, len(cell.values), _round(cell.mean),
                    _round(cell.std), cell.paper, str(cell.synthetic).lower())  # fmt: skip
            writer.writerow(["" if value is None else value for value in line])
    page = f"# {table.title}\n\nMade from the records.\n\n{markdown(table, records)}\n"
    files = {folder / f"{table.name}.md": page, folder / f"{table.name}.csv": text.getvalue()}
    return [path for path, content in files.items() if replace(path, content)]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
