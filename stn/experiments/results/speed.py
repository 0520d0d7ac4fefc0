"""The cost of an error: the core-minutes of every cell of a table under each schedule, with the error it reached."""

from typing import Any

from stn.experiments.results.pages import in_markdown
from stn.experiments.results.records import Record, core_seconds, on_gpu
from stn.experiments.results.tables import Table, belongs, cell_of

HEAD = """# What an error costs

Made from the records. Each cell is one run: the minutes of one core that its training took, and its test error at the
end. Read along a row, from the schedule with the fewest images to that with the most, to see what a lower error costs.

The minutes are CPU time (`core_seconds`) where the record has it, which is so under `quick` and `fast`: compare these.
Older records have none. Their minutes are seconds times threads on a machine that did other work beside, up to several
times too long.

A run on a GPU is marked so: its minutes are those of a card that it may have shared with others."""
UNTIL = """## Until the paper's error, on validation

Runs that leave out the validation images and are tested on them during training. *Steps* is the first such test with an
error that rounds to the paper's or less; images and core time are those up to it, without the tests themselves. A
cycle ends with small steps, and the error falls most there, so a shorter schedule may get there sooner than these.

```bash
python run.py experiment=mnist_fcn data/distortion=r data.test_split=valid validations=30 runs_dir=runs/studies
python scripts/studies.py && make records
```"""


def page(tables: list[Table], records: list[Record], validated: list[Record]) -> str:
    """A Markdown page with one table for each of `tables`: its cells by schedule, for the first seed.

    `validated` are records of runs on validation data, with their curves: a last table says when they reached the
    paper's error.
    """
    parts = [HEAD]
    for table in tables:
        found: dict[tuple[str, str], dict[str, Record]] = {}
        for record in sorted(records, key=lambda r: r["seed"]):
            if record["status"] == "finished" and not record["synthetic"] and belongs(table, record):
                found.setdefault(cell_of(table, record), {}).setdefault(record["schedule"], record)
        images: dict[str, list[int]] = {}
        for of_cell in found.values():
            for schedule, record in of_cell.items():
                batch = record["config"]["schedule"].get("batch_size") or 1
                images.setdefault(schedule, []).append(record["steps"] * batch)
        schedules = sorted(images, key=lambda name: sum(images[name]) / len(images[name]))
        lines = [["Model", "Data", *(f"`{name}`" for name in schedules), "Paper"]]
        lines.append(["---", "---", *["---:"] * (len(schedules) + 1)])
        for column, label in table.columns.items():
            for row, name in table.rows.items():
                of_cell = found.get((row, column), {})
                figures = [_cell(table, of_cell.get(schedule)) for schedule in schedules]
                printed = table.paper.get(row, {}).get(column)
                if of_cell:
                    lines.append([name, label, *figures, "" if printed is None else f"{printed} %"])
        parts.append(f"## {table.title}\n\n" + in_markdown(lines))
    reached = [line for table in tables for line in _until(table, validated)]
    if reached:
        head = ["Model", "Data", "Schedule", "Steps", "Images", "Core time", "Lowest error", "Paper", "Processor"]
        parts += [UNTIL, in_markdown([head, [*["---"] * 3, *["---:"] * 5, "---"], *reached])]
    return "\n\n".join(parts) + "\n"


def _cell(table: Table, record: Record | None) -> str:
    if record is None:
        return ""
    return f"{_minutes(record)}: {float(record['metrics'][table.metric]):.2f} %"


def _minutes(record: Record, part: float = 1.0) -> str:
    """How long a part of a run's training took."""
    if on_gpu(record):
        return f"{record['seconds'] * part / 60:.1f} min of a GPU"
    return f"{core_seconds(record) * part / 60:.1f} min"


def _until(table: Table, validated: list[Record]) -> list[list[str]]:
    """A line for every cell with a run on validation data and a figure in the paper, by column and row."""
    found: dict[tuple[str, str, str], Record] = {}
    for record in sorted(validated, key=lambda r: r["seed"]):
        if valid_errors(record) and belongs(table, as_tested(record)):
            found.setdefault((*cell_of(table, record), record["schedule"]), record)
    lines = []
    for column, label in table.columns.items():
        for row, name in table.rows.items():
            for (*cell, schedule), record in sorted(found.items()):
                printed = table.paper.get(row, {}).get(column)
                if cell == [row, column] and printed is not None:
                    lines.append(
                        [name, label, f"`{schedule}`", *_first(record, printed), f"{printed} %", record["device"]]
                    )
    return lines


def _first(record: Record, wanted: float) -> list[str]:
    """Steps, images and core-minutes up to the first validation error that rounds to `wanted` or less; the lowest."""
    errors, steps = valid_errors(record), record["steps"]
    lowest = f"{min(error for _, error in errors):.2f} %"
    step = next((step for step, error in errors if round(error, 1) <= wanted), None)
    if step is None:
        return [f"not in {steps:,}", "", "", lowest]
    images = step * record["config"]["schedule"]["batch_size"]
    return [f"{step:,} of {steps:,}", f"{images:,}", _minutes(record, step / steps), lowest]


def valid_errors(record: Record) -> list[tuple[int, float]]:
    """The steps of a run's validations, and their errors in percent."""
    return [(entry["step"], entry["valid/error"]) for entry in record.get("curve", []) if "valid/error" in entry]


def as_tested(record: Record) -> dict[str, Any]:
    """The record of a run on validation data as if it were one on the test set."""
    own = ("data.test_split=", "validations=")
    return record | {"overrides": [word for word in record["overrides"] if not word.startswith(own)]}
