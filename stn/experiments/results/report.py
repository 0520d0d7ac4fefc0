"""The report: every record as one HTML page that needs no server, no network and no script.

The page depends on the records, conf/table, the pictures and results/not_run.yaml alone: the same files always make the
same bytes.
"""

import base64
import mimetypes
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from stn.experiments.results import against, curves, pages, tables
from stn.experiments.results.cells import Cell
from stn.experiments.results.records import Record, metrics_of, spent
from stn.experiments.results.tables import Table
from stn.experiments.yaml_files import read_yaml

STANDINGS = {
    "better": "ours is better than the paper's figure by more than the error of both",
    "level": "the two differ by no more than the error of both",
    "worse": "ours is worse by more than the error of both",
    "no figure in the paper": "there is nothing to compare with",
    "synthetic data": "the data were generated here, so the figure is never compared",
    "not compared": "the number of test images, and so the error, is unknown",
    "failed": "the loss became NaN or infinite; the reason is listed below",
    "not run": "no record; the reason is listed below",
}
MOST_COLUMNS = 6  # of a table on the page; a wider one is transposed
PICTURES = {".png", ".jpg", ".gif", ".webp", ".svg"}
FILMS = {".mp4", ".webm"}


def counts_errors(table: Table) -> bool:
    """Whether the table's metric counts errors, of which less is better."""
    return "error" in table.metric


def standing(cell: Cell, errors: bool) -> str:
    """One of STANDINGS; `errors` says whether the cell counts errors, of which less is better."""
    if cell.mean is None:
        return "failed" if cell.failed else "not run"
    if cell.synthetic:
        return "synthetic data"
    if cell.paper is None:
        return "no figure in the paper"
    names = {"\N{ALMOST EQUAL TO}": "level", "<": "better" if errors else "worse", ">": "worse" if errors else "better"}
    return names.get(cell.relation, "not compared")


@dataclass(frozen=True)
class Shown:
    """A cell as shown on the page."""

    row: str
    column: str
    ours: str
    beside: str
    standing: str


def show(cell: Cell, errors: bool) -> Shown:
    """Our figure as in the tables, with the paper's figure and the difference."""
    said = standing(cell, errors)
    beside = "paper: none" if cell.paper is None else f"paper {cell.paper}"
    if said in ("better", "level", "worse"):
        assert cell.mean is not None
        assert cell.paper is not None
        beside += f", {cell.mean - cell.paper:+.2f}".replace("-", "\N{MINUS SIGN}")
    return Shown(cell.row, cell.column, said if cell.mean is None else str(cell), beside, said)


def duration(seconds: int | float) -> str:
    """1.5 h, 12 min or 40 s."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def took(runs: list[Record]) -> str:
    """The CPU time of runs in all; of those on a GPU, their time."""
    cores, cards = spent(runs)
    parts = [duration(cores)] * bool(cores) + [f"{duration(cards)} of a GPU"] * bool(cards)
    return " + ".join(parts) or duration(0)


def span(values: Sequence[int | float], form: str = ",.0f") -> str:
    """The range from least to greatest, one number if they are equal, "not recorded" if there is none."""
    if not values:
        return "not recorded"
    texts = list(dict.fromkeys((format(min(values), form), format(max(values), form))))
    return " to ".join(texts)


def variants(table: Table, found: list[Record]) -> list[dict[str, Any]]:
    """Every kind of data, schedule and budget with records in the table, the most complete first."""
    return [variant(table, *block) for block in tables.blocks(table, found)]


def variant(table: Table, found: list[Record], schedule: str, budget: Any) -> dict[str, Any]:
    """The page's data on one table under one schedule and budget."""
    mine = [r for r in found if tables.belongs(table, r) and (r["schedule"], r["budget"]) == (schedule, budget)]
    mine = tables.alike(table, mine)
    cells = [show(cell, counts_errors(table)) for cell in tables.cells(table, found, schedule, budget)]
    rows, columns = list(table.rows.values()), list(table.columns.values())
    turned = len(columns) > MOST_COLUMNS
    by_row = [(row, cells[i * len(columns) :][: len(columns)]) for i, row in enumerate(rows)]
    by_column = [(column, cells[i :: len(columns)]) for i, column in enumerate(columns)]
    costs = []
    for experiment, row in table.rows.items():
        runs = [r for r in mine if r["experiment"] == experiment]
        if runs:
            steps_ms = [1000 * r["seconds"] / r["steps"] for r in runs]
            speeds = [r["samples_per_s"] for r in runs if r.get("samples_per_s")]
            costs.append((row, len(runs), span([r["params"] for r in runs]), took(runs),
                          span(steps_ms, ",.1f"), span(speeds)))  # fmt: skip
    key = curves.quantity(table, mine)
    synthetic = any(r["synthetic"] for r in mine)
    seen = {r["experiment"] for r in mine}
    return {
        "schedule": schedule,
        "anchor": "-".join([table.name, schedule, str(budget), *(["synthetic"] if synthetic else [])]),
        "text": pages.describe(found, table, schedule, budget),
        "took": took(mine),
        "runs": len(mine),
        "synthetic": synthetic,
        "cells": cells,
        "head": rows if turned else columns,
        "lines": by_column if turned else by_row,
        "turned": turned,
        "counts": Counter(cell.standing for cell in cells),
        "costs": costs,
        "quantity": key,
        "panels": [Markup(svg) for svg in (curves.panels(table, mine, key) if key else [])],
        "legend": [(label, *curves.style(i)) for i, (name, label) in enumerate(table.rows.items()) if name in seen],
    }


def missing(shown: list[tuple[Table, list[dict[str, Any]]]], reasons: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """(table, schedule, cells, reason) for cells without a run; `reasons` are the entries of results/not_run.yaml.

    The first entry counts whose table, schedule, row and column match.  Each of these is a pattern; a missing one
    matches everything.
    """

    def why(**cell: str) -> str:
        fits = (e for e in reasons if all(fnmatch(text, str(e.get(key, "*"))) for key, text in cell.items()))
        return next(fits, {}).get("why", "no reason is given in results/not_run.yaml")

    lines: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for table, variants in shown:
        if not variants:
            for row in table.rows.values():
                for column in table.columns.values():
                    reason = why(table=table.name, schedule="", row=row, column=column)
                    lines.setdefault((table.title, "any", reason), {}).setdefault(row, []).append(column)
        for part in variants:
            for cell in part["cells"]:
                if cell.standing == "not run":
                    reason = why(table=table.name, schedule=part["schedule"], row=cell.row, column=cell.column)
                    key = (table.title, part["schedule"], reason)
                    lines.setdefault(key, {}).setdefault(cell.row, []).append(cell.column)
    return [
        (title, schedule, "; ".join(f"{row}: {', '.join(columns)}" for row, columns in cells.items()), reason)
        for (title, schedule, reason), cells in lines.items()
    ]


def embed(path: Path) -> str:
    """A file as a data URI."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def pictures(folder: Path) -> list[dict[str, Any]]:
    """The pictures and films of a folder, with captions and in the order of its captions.yaml; others follow."""
    listed = folder / "captions.yaml"
    captions: dict[str, str] = read_yaml(listed) or {} if listed.exists() else {}
    files = {p.stem: p for p in sorted(folder.rglob("*")) if p.suffix in PICTURES | FILMS}
    names = [name for name in captions if name in files] + [name for name in files if name not in captions]
    return [
        {
            "name": name,
            "file": files[name].relative_to(folder).as_posix(),
            "caption": captions.get(name, name.replace("_", " ")),
            "film": files[name].suffix in FILMS,
            "moves": files[name].suffix in FILMS | {".gif", ".webp"},
            "uri": embed(files[name]),
        }
        for name in names
    ]


def machines(found: list[Record]) -> list[tuple[int, str, str, str]]:
    """The number of runs of each combination of machine, versions and commit."""

    def where(record: Record) -> tuple[str, str, str]:
        commit = record["commit"]
        changed = ", with changes that were not committed" if record["dirty"] else ""
        return (
            f"{record['device']}, {record['threads']} thread{'s' if record['threads'] > 1 else ''}, "
            f"{record['precision']}",
            ", ".join(f"{name} {number}" for name, number in record["versions"].items()) or "not recorded",
            f"{commit[:10]}{changed}" if commit else "not recorded",
        )

    return [(n, *key) for key, n in sorted(Counter(map(where, found)).items(), key=lambda kv: (-kv[1], kv[0]))]


def every_run(found: list[Record]) -> list[tuple[str, ...]]:
    """One line per record: name, schedule, seed, result, parameters, steps, time, device, identity."""
    lines = []
    for r in found:
        settings = [word for word in r["overrides"] if not tables.is_neutral(word)]
        result = ", ".join(f"{key} {value:.2f}" for key, value in metrics_of(r).items()) or "no metric"
        lines.append((
            f"{r['experiment']} {' '.join(settings)}".strip(), r["schedule"], str(r["seed"]),
            result if r["status"] == "finished" else f"failed: {r.get('failure', 'no reason recorded')}",
            f"{r['params']:,}", f"{r['steps']:,}", duration(r["seconds"]), r["id"].rsplit("-", 1)[-1],
        ))  # fmt: skip
    return sorted(lines)


def data_name(record: Record) -> str:
    """The data set of a record and its settings: mnist, distortion rts."""
    data = {k: v["name"] if isinstance(v, dict) and "name" in v else v for k, v in record["config"]["data"].items()}
    shown = {key: value for key, value in data.items() if key != "name" and not isinstance(value, dict | list)}
    return ", ".join([data["name"], *(f"{key} {value}" for key, value in shown.items())])


def code(text: str) -> Markup:
    """Text with `words` as <code> and **words** as <strong>."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", marked))


@cache
def template() -> Template:
    """The page's template, which escapes every string unless it is marked up here."""
    loader = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    loader.filters |= {"code": code, "duration": duration}
    return loader.from_string((Path(__file__).parent / "report.html.j2").read_text())


def page(found: list[Record], known: list[Table], figures: Path, not_run: Path, damaged: list[str]) -> str:
    """The report of the records `found`; `damaged` are the errors of those that could not be read.

    Raises ValueError if there is no record at all.
    """
    damaged, usable = list(damaged), []
    for record in found:
        lacking = [t.metric for t in known if tables.belongs(t, record) and t.metric not in record["metrics"]]
        if record["status"] == "finished" and lacking:
            damaged.append(f"the record {record['id']} lacks the metric {lacking[0]}: delete it to run again")
        else:
            usable.append(record)
    if not usable:
        raise ValueError("there is no record to report: make some with `make reproduce-table1`")
    in_order = sorted(known, key=lambda t: (not t.name.startswith("table"), t.name))  # the paper's numbered ones first
    shown = [(t, variants(t, usable)) for t in in_order]
    dots = against.series([t for t in in_order if t.name.startswith("table") and counts_errors(t)], usable)
    counted = set().union(*(part["counts"] for _, parts in shown for part in parts))
    reasons: dict[str, Any] = read_yaml(not_run) or {} if not_run.exists() else {}
    everything = pictures(figures) if figures.is_dir() else []
    return template().render(
        records=usable,
        newest=max((r.get("finished_at") or "" for r in usable), default=""),
        tables=shown,
        standings=STANDINGS,
        counted=[name for name in STANDINGS if name == "not run" or name in counted],
        colours=list(zip(curves.COLOURS, curves.ON_DARK, strict=True)),
        diagonal=Markup(against.diagonal(dots)),
        signs=[(name, Markup(against.marker(i))) for i, (name, _) in enumerate(dots)],
        still=[p for p in everything if not p["moves"]],
        moving=[p for p in everything if p["moves"]],
        missing=missing(shown, reasons.get("cells") or []),
        also=reasons.get("also") or [],
        machines=machines(usable),
        data=sorted({(data_name(r), *part) for r in usable for part in r["data_sha256"].items()}),
        runs=every_run(usable),
        damaged=damaged,
    )  # fmt: skip
