"""Our errors against the paper's as SVG charts: all cells in a scatter plot, and one table column by column.

Both show the first block of a table (`tables.blocks`), which has the most cells.  Synthetic data are never compared.
"""

import math
from html import escape

from stn.experiments.results import tables
from stn.experiments.results.cells import Cell
from stn.experiments.results.curves import COLOURS, ticks
from stn.experiments.results.records import Record
from stn.experiments.results.tables import Table

LEAST = 0.05  # %, lower end of an axis: the paper prints one decimal
SIDE, MARGIN, PAD = 480, 58, 14  # px, of the scatter plot and its margins
MARKERS = (  # around (0, 0), one for each series, since colour alone is not enough
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.4-4.4h8.8v8.8h-8.8z",
    "M0-5.6L5.2 4H-5.2z",
    "M0-6L6 0L0 6L-6 0z",
    "M0 5.6L5.2-4H-5.2z",
    "M-1.7-5.5h3.4v3.8h3.8v3.4h-3.8v3.8h-3.4v-3.8h-3.8v-3.4h3.8z",
)
NAMES, PANEL, ROW, HEAD, FOOT = 112, 212, 20, 30, 46  # px, widths and heights of the chart by column
GAP = 32


def compared(table: Table, records: list[Record]) -> tuple[str, list[Cell]]:
    """The schedule and the cells of the table's first block; ("", []) if there is none or its data are synthetic."""
    block = next(iter(tables.blocks(table, [r for r in records if not r["synthetic"]])), None)
    return ("", []) if block is None else (block[1], tables.cells(table, *block))


def series(known: list[Table], records: list[Record]) -> list[tuple[str, list[Cell]]]:
    """The cells with a figure of ours and of the paper's, one series per column if a table has several."""
    found: dict[str, list[Cell]] = {}
    for table in known:
        _, cells = compared(table, records)
        for cell in cells:
            if cell.mean is not None and cell.paper is not None:
                name = table.title.split(":")[0]
                found.setdefault(f"{name}, {cell.column}" if len(table.columns) > 1 else name, []).append(cell)
    return list(found.items())


def limits(values: list[float]) -> tuple[float, float]:
    """The ends of a log axis around the values."""
    return max(0.8 * min(values), LEAST), max(1.25 * max(values), 2 * LEAST)


def marker(i: int) -> str:
    """The marker of the i-th series."""
    return f'class="dot c{1 + i % (len(COLOURS) - 1)}" d="{MARKERS[i % len(MARKERS)]}"'


def diagonal(shown: list[tuple[str, list[Cell]]]) -> str:
    """Our error over the paper's, on equal log scales; on the diagonal they are equal.  Empty if there is no dot."""
    values = [float(value) for _, cells in shown for cell in cells for value in (cell.mean, cell.paper) if value]
    if not values:
        return ""
    low, high = limits(values)
    span = SIDE - MARGIN - PAD

    def along(value: float) -> float:
        return span * math.log(min(max(value, low), high) / low) / math.log(high / low)

    def x(value: float) -> float:
        return MARGIN + along(value)

    def y(value: float) -> float:
        return SIDE - MARGIN - along(value)

    n = sum(len(cells) for _, cells in shown)
    parts = [
        f'<svg class="against" viewBox="0 0 {SIDE} {SIDE}" role="img" '
        f'aria-label="Our error over the paper\'s in {n} cells, log scales">',
        f'<text x="{MARGIN + span / 2}" y="{SIDE - 10}" text-anchor="middle">the paper\'s error, % (log scale)</text>',
        f'<text transform="translate(16 {SIDE - MARGIN - span / 2}) rotate(-90)" text-anchor="middle">'
        "our error, % (log scale)</text>",
    ]
    for tick in ticks(low, high):
        cross = f"M{x(tick):.1f} {y(low):.1f}V{y(high):.1f}M{x(low)} {y(tick):.1f}H{x(high)}"
        parts.append(f'<path class="rule" d="{cross}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{y(low) + 18:.1f}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{MARGIN - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<path class="equal" d="M{x(low)} {y(low)}L{x(high)} {y(high)}"/>')
    parts.append(f'<path class="equal near" d="M{x(low)} {y(1.5 * low):.1f}L{x(high / 1.5):.1f} {y(high)}"/>')
    for i, (name, cells) in enumerate(shown):
        for cell in cells:
            assert cell.mean is not None
            assert cell.paper is not None
            said = f"{name}: {cell.row}: ours {cell.mean:.2f} %, the paper's {cell.paper} %"
            parts.append(
                f'<path {marker(i)} transform="translate({x(cell.paper):.1f} {y(cell.mean):.1f})">'
                f"<title>{escape(said)}</title></path>"
            )
    return "".join([*parts, "</svg>"])


def by_column(table: Table, records: list[Record]) -> str:
    """An SVG file with a panel per column and a line per row: our figure is a dot, the paper's a bar.

    Empty if all of the table's records are of synthetic data.
    """
    schedule, cells = compared(table, records)
    values = [v for cell in cells for v in (*cell.values, *([] if cell.paper is None else [cell.paper]))]
    if not any(cell.values for cell in cells):
        return ""
    low, high = limits(values)
    rows = list(dict.fromkeys(cell.row for cell in cells))
    height = HEAD + ROW * len(rows) + FOOT
    slots = len(table.columns) + 1  # the last slot is for the legend
    w, h = NAMES + 2 * (PANEL + GAP), 40 + height * -(-slots // 2)
    title = f"{table.title.split(',')[0]}, ours and the paper's"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img">',
        f"<title>{escape(title)}</title>",
        "<style>text{font:16px system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif;fill:#333}"
        ".name{font-weight:600}.rule{stroke:#ddd}.run{stroke:#0072b2;stroke-width:2}.gap{stroke:#bbb;stroke-width:2}"
        ".ours{stroke:#0072b2;stroke-width:2;fill:#fff}.most{fill:#0072b2}.alone{fill:#9ecae6}.paper{fill:#333}</style>",
        f'<rect width="{w}" height="{h}" rx="6" fill="#fff"/>',
        f'<text x="8" y="24" class="name">{escape(title)}</text>',
    ]
    for i, label in enumerate(table.columns.values()):
        left, top = NAMES + (i % 2) * (PANEL + GAP), 40 + i // 2 * height
        parts += _panel(label, [c for c in cells if c.column == label], left, top, i % 2 == 0, low, high)
    left, top = NAMES + (slots - 1) % 2 * (PANEL + GAP), 40 + (slots - 1) // 2 * height + HEAD
    signs = (
        ('<circle class="ours most" r="5"/>', "ours, at most the paper's"),
        ('<circle class="ours" r="5"/>', "ours, above the paper's"),
        ('<circle class="ours alone" r="5"/>', "ours; the paper has none"),
        ('<rect class="paper" x="-1.5" y="-8" width="3" height="16"/>', "the paper's"),
        ('<path class="run" d="M-8 0H8"/>', "our lowest to highest run"),
    )
    for i, (sign, words) in enumerate(signs):
        at = top + 12 + 26 * i
        parts.append(f'<g transform="translate({left + 10} {at})">{sign}</g>')
        parts.append(f'<text x="{left + 28}" y="{at + 5}">{words}</text>')
    parts.append(f'<text x="{left}" y="{top + 12 + 26 * len(signs) + 5}">schedule {escape(schedule)}</text>')
    return "".join([*parts, "</svg>\n"])


def _panel(label: str, cells: list[Cell], left: int, top: int, named: bool, low: float, high: float) -> list[str]:
    def x(value: float) -> float:
        return left + PANEL * math.log(min(max(value, low), high) / low) / math.log(high / low)

    bottom = top + HEAD + ROW * len(cells)
    parts = [f'<text x="{left}" y="{top + 20}" class="name">{escape(label)}</text>']
    for tick in ticks(low, high):
        parts.append(f'<path class="rule" d="M{x(tick):.1f} {top + HEAD}V{bottom}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    middle = left + PANEL / 2
    parts.append(f'<text x="{middle}" y="{bottom + 35}" text-anchor="middle">test error, % (log scale)</text>')
    for i, cell in enumerate(cells):
        y = top + HEAD + ROW * (i + 0.5)
        if named:
            parts.append(f'<text x="{left - 8}" y="{y + 5}" text-anchor="end">{escape(cell.row)}</text>')
        if cell.mean is not None and cell.paper is not None:
            parts.append(f'<path class="gap" d="M{x(cell.paper):.1f} {y}H{x(cell.mean):.1f}"/>')
        if cell.paper is not None:
            parts.append(f'<rect class="paper" x="{x(cell.paper) - 1.5:.1f}" y="{y - 8}" width="3" height="16"/>')
        if cell.mean is not None:
            parts.append(f'<path class="run" d="M{x(min(cell.values)):.1f} {y}H{x(max(cell.values)):.1f}"/>')
            kind = " alone" if cell.paper is None else " most" if cell.mean <= cell.paper else ""
            parts.append(f'<circle class="ours{kind}" cx="{x(cell.mean):.1f}" cy="{y}" r="5"/>')
    return parts
