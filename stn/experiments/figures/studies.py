"""Figures of docs/studies.md: what the options do to a digit, and the errors under each beside the paper's."""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Generator

from stn.experiments import draw
from stn.experiments.command import ROOT
from stn.experiments.datasets.mnist import DistortedMnist
from stn.experiments.figures import SIDE_PX, ranges
from stn.experiments.results import records, studies
from stn.experiments.results.curves import COLOURS, ticks

W, LEFT, RIGHT, TOP, BOTTOM, ROW_PX = 820, 250, 24, 44, 34, 30
INK, RULE = "#333333", "#dddddd"
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


def options(runs: Path, columns: int = 9) -> Image.Image:
    """The same digits under the same draws with every option of the studies of data."""
    rows = []
    for name, change in SHOWN.values():
        u, _ = DistortedMnist(ROOT / "data", ranges(name) | change).batch(columns, Generator().manual_seed(1))
        rows.append([draw.tile(image, SIDE_PX) for image in u])
    return draw.label(draw.stack(rows), list(SHOWN))


def errors(runs: Path, study: str) -> Image.Image:
    """One line per model: its error under every value of the option as a dot, the paper's as a bar; a log axis."""
    what = studies.STUDIES[study]
    rows = studies.results(study, records.read_kept(ROOT / "results/studies"))
    used = [value for value in what.values if any(value in cells for cells in rows.values())]
    figures = [studies.error(record) for cells in rows.values() for record in cells.values()]
    figures += [printed for row in rows if (printed := studies.paper(row)) is not None]
    low, high = 0.85 * min(figures), 1.15 * max(figures)
    page = Image.new("RGB", (W, TOP + ROW_PX * len(rows) + BOTTOM), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)

    def x(value: float) -> float:
        return LEFT + (W - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)

    place = 8.0
    for value in used:
        pen.ellipse((place, 11, place + 10, 21), fill=COLOURS[1 + used.index(value)])
        pen.text((place + 14, 16), what.values[value], fill=INK, font=font, anchor="lm")
        place += 30 + pen.textlength(what.values[value], font)
    pen.rectangle((place, 8, place + 3, 24), fill=INK)
    pen.text((place + 9, 16), "paper", fill=INK, font=font, anchor="lm")
    bottom = page.height - BOTTOM
    for tick in ticks(low, high):
        pen.line((x(tick), TOP, x(tick), bottom), fill=RULE)
        pen.text((x(tick), bottom + 14), f"{tick:g} %", fill=INK, font=font, anchor="mm")
    for i, (row, cells) in enumerate(rows.items()):
        y = TOP + (i + 0.5) * ROW_PX
        name = f"{studies.named(row, len(what.distortions) > 1)} ({row[3]:,} steps)"
        pen.text((LEFT - 12, y), name, fill=INK, font=font, anchor="rm")
        shown = [x(studies.error(record)) for record in cells.values()]
        pen.line((min(shown), y, max(shown), y), fill=RULE, width=3)
        if (printed := studies.paper(row)) is not None:
            pen.rectangle((x(printed) - 1, y - 10, x(printed) + 2, y + 10), fill=INK)
        for value, record in cells.items():
            at = x(studies.error(record))
            pen.ellipse((at - 5, y - 5, at + 5, y + 5), fill=COLOURS[1 + used.index(value)])
    return page
