"""Learning curves as inline SVG: one panel per column of a table, one line per run, the error on a log scale."""

import math
from html import escape
from typing import Any

from stn.experiments.results import tables
from stn.experiments.results.records import Record, thin
from stn.experiments.results.tables import Table

# Okabe and Ito's colours without the yellow, which is pale on white; readable with any colour vision
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
ON_DARK = (
    "#f2f2f2",
    "#ff6b3d",
    "#4a9fe0",
    "#1fc997",
    "#e39ac2",
    "#f5c13c",
    "#8fd0ff",
    "#9a9a9a",
)  # the same colours, lighter
W, H, LEFT, RIGHT, TOP, BOTTOM = 320, 236, 56, 12, 26, 46  # of a panel and its margins, px
Number = int | float
Point = tuple[Number, Number]  # step and value


def quantity(table: Table, records: list[Record]) -> str | None:
    """What the curves show: the table's metric in training if every run has it, else a loss, else None."""
    keys = [set().union(*r["curve"]) for r in records if r.get("curve")]
    wanted = f"train/{table.metric.split('/')[-1]}"
    common = set.intersection(*keys) if keys else set()
    return next((key for key in (wanted, "train/loss") if key in common), None)


def style(row: int) -> tuple[int, str]:
    """Index into COLOURS and dash pattern of a table's row; the pattern changes when the colours repeat."""
    return row % len(COLOURS), ("", "6 3", "2 2")[row // len(COLOURS) % 3]


def panels(table: Table, records: list[Record], key: str) -> list[str]:
    """One SVG per column with a curve, all on the same axes; a row of the table has the same colour in all."""
    rows = list(table.rows)
    lines: dict[Any, list[tuple[int, list[Point]]]] = {value: [] for value in table.columns}
    for record in records:
        points = [(entry["step"], entry[key]) for entry in thin(record.get("curve", [])) if key in entry]
        if points:
            lines[tables.column_of(table, record)].append((rows.index(record["experiment"]), points))
    shown = [y for one in lines.values() for _, points in one for _, y in points if y > 0]
    if not shown:
        return []
    low, high = min(shown), max(shown)
    steps = max(1, *(x for one in lines.values() for _, points in one for x, _ in points))
    return [
        panel(label, sorted(lines[value]), key, steps, low, max(high, 1.2 * low))
        for value, label in table.columns.items()
        if lines[value]
    ]


def ticks(low: Number, high: Number) -> list[Number]:
    """1, 2 and 5 times powers of ten within [low, high]; over many decades only powers of ten."""
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]


def panel(label: str, lines: list[tuple[int, list[Point]]], key: str, steps: Number, low: Number, high: Number) -> str:
    """The lines (row, [(step, value)]) of one column, steps from 0, values on a log scale from low to high."""

    def x(step: Number) -> Number:
        return LEFT + (W - LEFT - RIGHT) * step / steps

    def y(value: Number) -> Number:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return H - BOTTOM - (H - TOP - BOTTOM) * share

    what = f"{label}: {key} over {steps:,.0f} steps, {len(lines)} runs"
    unit = "" if key.endswith("loss") else ", %"
    parts = [
        f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{escape(what)}">',
        f'<text x="{LEFT}" y="16" class="name">{escape(label)}</text>',
        f'<text x="{(LEFT + W - RIGHT) / 2}" y="{H - 6}" text-anchor="middle">training step</text>',
        f'<text transform="translate(13 {(TOP + H - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(key)}{unit}</text>",
    ]
    for value in ticks(low, high):
        parts.append(f'<path class="rule" d="M{LEFT} {y(value):.1f}H{W - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        parts.append(
            f'<text x="{x(share * steps):.1f}" y="{H - 26}" text-anchor="{anchor}">{share * steps:,.0f}</text>'
        )
    for row, points in lines:
        colour, dash = style(row)
        path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<path class="curve c{colour}"{dashed} d="M{path}"/>')
    return "".join([*parts, "</svg>"])
