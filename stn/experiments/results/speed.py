"""The cost of an error: the core-minutes of every cell of a table under each schedule, with the error it reached."""

from stn.experiments.results.pages import in_markdown
from stn.experiments.results.records import Record, core_seconds
from stn.experiments.results.tables import Table, belongs, cell_of

HEAD = """# What an error costs

Made from the records. Each cell is one run: the minutes of one core that its training took, and its test error at the
end. Read along a row, from the cheapest schedule to the dearest, to see what a lower error costs.

The minutes are CPU time (`core_seconds`) where the record has it, which is so under `quick` and `fast`: compare these.
Older records have none. Their minutes are seconds times threads on a machine that did other work beside, up to several
times too long. At which step a run first reached the paper's error is not recorded."""


def page(tables: list[Table], records: list[Record]) -> str:
    """A Markdown page with one table for each of `tables`: its cells by schedule, for the first seed."""
    parts = [HEAD]
    for table in tables:
        found: dict[tuple[str, str], dict[str, Record]] = {}
        for record in sorted(records, key=lambda r: r["seed"]):
            if record["status"] == "finished" and not record["synthetic"] and belongs(table, record):
                found.setdefault(cell_of(table, record), {}).setdefault(record["schedule"], record)
        cost: dict[str, list[float]] = {}
        for of_cell in found.values():
            for schedule, record in of_cell.items():
                cost.setdefault(schedule, []).append(core_seconds(record) / 60)
        schedules = sorted(cost, key=lambda name: sum(cost[name]) / len(cost[name]))
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
    return "\n\n".join(parts) + "\n"


def _cell(table: Table, record: Record | None) -> str:
    if record is None:
        return ""
    return f"{core_seconds(record) / 60:.1f} min: {float(record['metrics'][table.metric]):.2f} %"
