"""A table as text: Markdown below a sentence on its contents, CSV, and its place in a page."""

import csv
import io
import re
from collections import Counter
from html import escape
from pathlib import Path

from stn.experiments.results.cells import BESIDE, SPREAD, Cell
from stn.experiments.results.records import Record, devices_of, on_gpu, replace, spent
from stn.experiments.results.tables import Table, alike, belongs, blocks, cells

CSV_COLUMNS = ("row", "column", "schedule", "budget", "params", "n", "mean", "std", "paper", "synthetic")


def grid(table: Table, found: list[Cell]) -> list[list[str]]:
    """The table as text, header first, without rows that have no run.

    A cell reads ours and the paper's, or ours alone if the paper has no figures.
    """
    rows = [[f"{table.unit}, ours / paper" if table.paper else table.unit, *table.columns.values()]]
    width = len(table.columns)
    for i in range(0, len(found), width):
        line = found[i : i + width]
        if any(cell.values or cell.failed for cell in line):
            rows.append([line[0].row, *(cell.beside() if table.paper else str(cell) for cell in line)])
    return rows


def describe(records: list[Record], table: Table, schedule: str, budget: int | None) -> str:
    """A summary: the data if synthetic, schedule, steps, size, seeds, time, machines and precision."""
    found = [r for r in records if belongs(table, r) and (r["schedule"], r["budget"]) == (schedule, budget)]
    mine = alike(table, found)
    others = len(found) - len(mine)
    left_out = f"  {others} of other code or settings than the newest of their cells left out." if others else ""
    finished = [r for r in mine if r["status"] == "finished"]
    data = ", ".join(sorted({r["config"]["data"]["name"] for r in mine}))
    synthetic = f"**Synthetic data: {data}.**  " if any(r["synthetic"] for r in mine) else ""
    if not finished:
        sized = "" if budget is None else f", at most {budget:,} trainable parameters"
        return f"{synthetic}Schedule `{schedule}`{sized}: no run has finished.{left_out}"
    seeds = sorted({r["seed"] for r in finished})
    seed = "Seed" + "s" * (len(seeds) > 1)
    took = [_took(runs, gpu) for gpu in (False, True) if (runs := [r for r in finished if on_gpu(r) is gpu])]
    precision = " or ".join(sorted({r["precision"] for r in finished}))
    return (
        f"{synthetic}Schedule `{schedule}`: {_steps(table, finished)}.  {_size(table, finished, budget)}.  "
        f"{seed} {', '.join(map(str, seeds))}.  {'; '.join(took)}, in {precision}.{left_out}"
    )


def _took(runs: list[Record], gpu: bool) -> str:
    """How long the runs on CPUs, or those on GPUs, took in all, and on which of them."""
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    devices = " or ".join(sorted({escaped(name) for r in runs for name in devices_of(r)}))
    cores, cards = spent(runs)
    if gpu:
        return f"{count} took {cards / 3600:.1f} hours of training in all on {devices}"
    threads = sorted({r["threads"] for r in runs})
    return (
        f"{count} took {cores / 3600:.1f} core-hours of training in all, on {devices}, "
        f"{' or '.join(map(str, threads))} thread{'s' * (threads[-1] > 1)}"
    )


def _steps(table: Table, finished: list[Record]) -> str:
    """6,000 steps of 64 images; if rows differ, with the classifier, or the row if its label names none."""
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


def _size(table: Table, finished: list[Record], budget: int | None) -> str:
    """The size of the networks, and the rule behind it if the table has the paper's figures."""
    if budget is not None:
        return f"At most {budget:,} trainable parameters in every network"
    params, model = [r["params"] for r in finished], finished[0]["config"]["model"]
    if not table.paper or not {"budget", "width"} & set(model):
        rule = ""
    elif "budget" in model:
        rule = "The widths that the paper states (256 units, 64 filters): "
    else:
        rule = f"{model['width']} x the paper's widths: "
    same = min(params) == max(params)
    return f"{rule}{min(params):,}{'' if same else f' to {max(params):,}'} trainable parameters"


def tally(found: list[Cell]) -> str:
    """How often ours is lower than the paper's, level within the error of both, or higher; empty if none compares."""
    counts = Counter(cell.relation for cell in found)
    compared = sum(counts[sign] for sign in "<≈>")
    if not compared:
        return ""
    sums = f"{counts['<']} lower, {counts['≈']} level, {counts['>']} higher"
    return f"Ours against the paper's {compared} figure{'s' if compared > 1 else ''}: {sums}."


def legend(table: Table) -> str:
    """How to read a cell."""
    return f"{SPREAD}  {BESIDE}" if table.paper else SPREAD


def markdown(table: Table, records: list[Record], best: bool = False) -> str:
    """One Markdown table per kind of data, schedule and budget, each below a sentence on its contents.

    With `best` only the first of them (`schedules`).
    """
    parts = []
    for block, schedule, budget in blocks(table, records)[: 1 if best else None]:
        found = cells(table, block, schedule, budget)
        header, *body = grid(table, found)
        parts.append(f"{describe(block, table, schedule, budget)}  {tally(found)}".strip())
        parts.append(in_markdown([header, ["---"] * len(header), *body]))
    if not parts:
        return "No records yet."
    notes = [legend(table), *table.notes]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


def escaped(text: str) -> str:
    """A record's text for Markdown, shown literally on one line: no markup, no HTML."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", escape(" ".join(text.split()), quote=False))


def in_markdown(lines: list[list[str]]) -> str:
    """Lines of cells as a Markdown table; the header and its rule come first."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(page: str, name: str, content: str) -> str:
    """A page with this content between `<!-- <name> -->` and `<!-- /<name> -->`; unchanged if it lacks these lines."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in page or end not in page:
        return page
    return f"{page.split(start)[0]}{start}\n\n{content}\n\n{end}{page.split(end)[1]}"


def into_page(page: str, table: Table, records: list[Record]) -> str:
    """A Markdown page with the best block of the table between the table's lines."""
    return put(page, table.name, markdown(table, records, best=True))


def write(folder: Path, table: Table, records: list[Record]) -> list[Path]:
    """The table as <folder>/<name>.md and .csv; the CSV has one line per row, column and schedule (`CSV_COLUMNS`).

    Returns which of the two files changed.
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
