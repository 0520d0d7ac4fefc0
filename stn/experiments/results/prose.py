"""Figures in prose: a page names the cell of a table that it cites, and the records fill in the figure.

    The FCN has an error of <!-- = table1/mnist_fcn/tc/paper -->16.99<!-- / --> %.

The text between the two comments is generated.  A cell is table/experiment/column/schedule.  A * in experiment or
column selects several, and `best` is the schedule that `pages.into_page` shows.  A further word asks for another fact
than our mean (`FACTS`), or for a metric of each run (`test/st1_head`, `test/st?_head`).  "A : B" divides A by B, cell
by cell or one by many.  Several figures read "0.67 to 0.85", a figure without a record "not run".  A mark must not
begin a line, which would end the paragraph.
"""

import math
import re
from collections.abc import Callable
from fnmatch import filter as matching
from itertools import product
from statistics import fmean

from stn.experiments.results import tables
from stn.experiments.results.cells import Cell
from stn.experiments.results.pages import escaped
from stn.experiments.results.records import Record, core_seconds, on_gpu
from stn.experiments.results.report import span

MARK = re.compile(r"<!-- = (.+?) -->.*?<!-- / -->", re.DOTALL)
Found = list[tuple[Cell, list[Record]]]  # the cells that were run, each with its records


def _of_records(key: str, form: str) -> Callable[[Found], str]:
    return lambda found: span([r[key] for _, runs in found for r in runs], form)


def _core_seconds(found: Found) -> list[list[float]]:
    """The CPU time of each run on a CPU, by cell; cells with runs on a GPU alone are left out."""
    return [of_cell for _, runs in found if (of_cell := [core_seconds(r) for r in runs if not on_gpu(r)])]


FACTS: dict[str, Callable[[Found], str]] = {
    "mean": lambda found: span([cell.mean for cell, _ in found if cell.mean is not None], ".2f"),
    "cell": lambda found: " to ".join(str(cell) for cell, _ in found),
    "paper": lambda found: span([cell.paper for cell, _ in found if cell.paper is not None], ".1f"),
    "n": lambda found: span([len(cell.values) for cell, _ in found], "d"),
    "schedule": lambda found: found[0][0].schedule,
    "steps": _of_records("steps", ",d"),
    "params": _of_records("params", ",d"),
    "hours": lambda found: span([sum(map(fmean, s)) / 3600] if (s := _core_seconds(found)) else [], ".1f"),  # of a seed
    "seconds": lambda found: span([s for of_cell in _core_seconds(found) for s in of_cell], ".0f"),
    "minutes": lambda found: span([math.ceil(s / 60) for of_cell in _core_seconds(found) for s in of_cell], "d"),
    "gpu_minutes": lambda found: span([math.ceil(r["seconds"] / 60) for _, rs in found for r in rs if on_gpu(r)], "d"),
    "device": lambda found: " or ".join(sorted({escaped(r["device"]) for _, runs in found for r in runs})),
}


def _metric(pattern: str, found: Found) -> str:
    values = [r["metrics"][key] for _, runs in found for r in runs for key in matching(r["metrics"], pattern)]
    if not values:
        raise ValueError(f"none of these records has a metric {pattern!r}")
    return span(values, ".2f")


def find(address: str, known: list[tables.Table], records: list[Record], whole: bool = False) -> Found:
    """The cells at table/experiment/column/schedule that have a figure; if `whole`, none unless all of them have one.

    Raises ValueError if the table has no such row or column.
    """
    table = next((table for table in known if table.name == address.split("/")[0]), None)
    if table is None or address.count("/") != 3:
        raise ValueError(f"{address!r} is not a cell: write table/experiment/column/schedule")
    _, row, column, schedule = address.split("/")
    rows, columns = matching(table.rows, row), matching(table.columns, column)
    if not rows or not columns:
        raise ValueError(f"{address!r}: {table.name} has no such row or column; see conf/table/{table.name}.yaml")
    block = next((block for block in tables.blocks(table, records) if schedule in ("best", block[1])), None)
    if block is None:
        return []
    cells = dict(zip(product(table.rows, table.columns), tables.cells(table, *block), strict=True))
    runs: dict[tuple[str, str], list[Record]] = {}
    mine = [r for r in block[0] if tables.belongs(table, r) and (r["schedule"], r["budget"]) == block[1:]]
    for record in tables.alike(table, mine):
        runs.setdefault(tables.cell_of(table, record), []).append(record)
    found = [(cells[key], runs[key]) for key in product(rows, columns) if cells[key].values]
    return [] if whole and len(found) < len(rows) * len(columns) else found


def figure(words: str, known: list[tables.Table], records: list[Record]) -> str:
    """The figure that the `words` of a mark ask for.  Raises ValueError on an unknown address or fact."""
    sides = []
    for side in words.split(" : "):
        address, _, fact = side.strip().partition(" ")
        if (fact or "mean") not in FACTS and not fact.startswith("test/"):
            raise ValueError(f"{words!r}: unknown {fact!r}: choose one of {', '.join(FACTS)}, or a metric, test/...")
        sides.append((find(address, known, records, whole=" : " in words), fact or "mean"))
    if not all(found for found, _ in sides):
        return "not run"
    if len(sides) == 1:
        ((found, fact),) = sides
        return FACTS[fact](found) if fact in FACTS else _metric(fact, found)
    over, under = ([cell.paper if fact == "paper" else cell.mean for cell, _ in found] for found, fact in sides)
    pairs = zip(
        over * (len(under) if len(over) == 1 else 1), under * (len(over) if len(under) == 1 else 1), strict=True
    )
    return span([a / b for a, b in pairs if a is not None and b], ".1f")


def fill(page: str, known: list[tables.Table], records: list[Record]) -> str:
    """A Markdown page with the figure of every mark."""

    def filled(mark: re.Match[str]) -> str:
        words = " ".join(mark.group(1).split())
        return f"<!-- = {words} -->{figure(words, known, records)}<!-- / -->"

    return MARK.sub(filled, page)
