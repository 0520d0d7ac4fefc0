"""Figures of docs/studies.md: the effect of the options on a digit, and the errors under each beside the paper's."""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Generator

from stn.experiments import draw
from stn.experiments.command import ROOT
from stn.experiments.datasets.mnist import DistortedMnist
from stn.experiments.figures import SIDE_PX, ranges
from stn.experiments.results import records, studies
from stn.experiments.results.curves import COLOURS, Number, ticks

W, SIDE, BOTTOM, LINE, LANE = 720, 24, 62, 28, 15  # px: the picture, its margins, a line of text, a row of dots
FINE = 2  # drawn at this multiple of the size, then averaged, for smooth edges
INK, RULE = "#333333", "#dddddd"
PAPER = "the paper's test error"
MARKS = (
    (0, 0),
    (4, 0),
    (3, 0),
    (4, 45),
    (5, 0),
    (3, 180),
)  # corners (0: a disc) and rotation; colour alone is not enough
SHOWN = {  # the options of a picture of training examples
    "P, 5 px": ("p", {"corner_std_px": 5.0}),
    "P, 3.54 px": ("p", {"corner_std_px": 3.54}),
    "P, 2.5 px": ("p", {"corner_std_px": 2.5}),
    "E, corners": ("e", {"control": "corners"}),
    "E, cells": ("e", {"control": "cells"}),
    "TC, max": ("tc", {"overlap": "maximum"}),
    "TC, sum": ("tc", {"overlap": "sum"}),
    "TC, over": ("tc", {"overlap": "overwrite"}),
    "no blank": ("tc", {"blank": False}),
}


def options(runs: Path, columns: int = 6) -> Image.Image:
    """The same digits with the same random draws under every option of the data studies."""
    rows = []
    for label, (name, change) in SHOWN.items():
        u, _ = DistortedMnist(ROOT / "data", ranges(name) | change).batch(columns, Generator().manual_seed(1))
        rows.append((label, [draw.tile(image, SIDE_PX) for image in u]))
    return draw.rows(rows)


class Pen:
    """Draws lines, marks and text on a page; coordinates are multiplied by FINE."""

    def __init__(self, height: int):
        self.page = Image.new("RGB", (W * FINE, height * FINE), "white")
        self.pen, self.font = ImageDraw.Draw(self.page), ImageFont.load_default(20 * FINE)

    def line(self, x0: Number, y0: Number, x1: Number, y1: Number, colour: str, width: int) -> None:
        self.pen.line([v * FINE for v in (x0, y0, x1, y1)], fill=colour, width=width * FINE)

    def mark(self, x: Number, y: Number, i: int) -> None:
        """The marker of the i-th value of an option."""
        corners, turn = MARKS[i % len(MARKS)]
        at, r = (x * FINE, y * FINE), (8 if corners else 6.5) * FINE
        colour = COLOURS[1 + i % (len(COLOURS) - 1)]
        if corners:
            self.pen.regular_polygon((at, r), corners, turn, fill=colour)
        else:
            self.pen.ellipse((at[0] - r, at[1] - r, at[0] + r, at[1] + r), fill=colour)

    def text(self, x: Number, y: Number, words: str, anchor: str = "lm") -> float:
        """Draw text; return its width."""
        self.pen.text((x * FINE, y * FINE), words, fill=INK, font=self.font, anchor=anchor)
        return self.pen.textlength(words, self.font) / FINE

    def done(self) -> Image.Image:
        small = self.page.resize((W, self.page.height // FINE), Image.Resampling.LANCZOS)
        return small.quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # keeps every colour


def errors(runs: Path, study: str) -> Image.Image:
    """Each model's error under every value of the option, each in its own lane, and the paper's, on a log axis."""
    what = studies.STUDIES[study]
    rows = studies.results(study, records.read_kept(ROOT / "results/studies"))
    used = [value for value in what.values if any(value in cells for cells in rows.values())]
    figures = [studies.error(runs) for cells in rows.values() for runs in cells.values()]
    figures += [printed for row in rows if (printed := studies.paper(row)) is not None]
    low, high = 0.85 * min(figures), 1.15 * max(figures)
    top = 2 * LINE + 12
    bottom = top + sum(LINE + LANE * len(cells) + 8 for cells in rows.values())
    pen = Pen(bottom + BOTTOM)

    def x(value: float) -> float:
        return SIDE + (W - 2 * SIDE) * math.log(value / low) / math.log(high / low)

    for tick in ticks(low, high):
        pen.line(x(tick), top, x(tick), bottom, RULE, 1)
        pen.text(x(tick), bottom + 16, f"{tick:g}", "mm")
    pen.text(W / 2, bottom + 44, "validation error, % (log scale)", "mm")
    place, y = 16.0, LINE / 2 + 4
    for i, value in enumerate(used):
        pen.mark(place, y, i)
        place += 14 + pen.text(place + 14, y, what.values[value]) + 34
        if i + 1 < len(used) and place + 14 + pen.font.getlength(what.values[used[i + 1]]) / FINE > W:
            place, y = 16.0, y + LINE
    if place + 14 + pen.font.getlength(PAPER) / FINE > W:
        place, y = 16.0, y + LINE
    pen.line(place, y - 9, place, y + 9, INK, 4)
    pen.text(place + 12, y, PAPER)
    y = top
    for row, cells in rows.items():
        pen.text(8, y + LINE / 2, f"{studies.named(row, len(what.distortions) > 1)}, {row[3]:,} steps of {row[4]}")
        lanes = {value: y + LINE + LANE * (i + 0.5) for i, value in enumerate(v for v in used if v in cells)}
        shown = [x(studies.error(runs)) for runs in cells.values()]
        middle = y + LINE + LANE * len(lanes) / 2
        pen.line(min(shown), middle, max(shown), middle, RULE, 3)
        if (printed := studies.paper(row)) is not None:
            pen.line(x(printed), y + LINE, x(printed), y + LINE + LANE * len(lanes), INK, 4)
        for value, lane in lanes.items():
            pen.mark(x(studies.error(cells[value])), lane, used.index(value))
        y += LINE + LANE * len(lanes) + 8
    return pen.done()
