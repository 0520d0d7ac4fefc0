"""Studies of what the paper leaves open: each varies one option, for the same models.

Their runs are tested on validation data and kept apart from those of the tables, in results/studies/records.jsonl.  A
row holds runs of one model with one number of steps, so within a row only the option differs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

from stn.experiments.command import ROOT
from stn.experiments.results.pages import in_markdown, put
from stn.experiments.results.records import Record
from stn.experiments.yaml_files import read_yaml

Row = tuple[str, str, int | None, int, int]  # experiment, distortion, width unless it is the option, steps, batch
ORDER = ("mnist_fcn", "mnist_cnn", "mnist_st_fcn_affine", "mnist_st_fcn_projective", "mnist_st_fcn_tps",
         "mnist_st_cnn_affine", "mnist_st_cnn_tps", "addition_fcn", "addition_st_fcn_affine", "addition_st_fcn_tps",
         "addition_2xst_fcn_affine", "addition_2xst_fcn_tps", "addition_st_cnn_tps", "addition_2xst_cnn_tps",
         "svhn_multi", "cub_2st_448", "voxel_st_cnn")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """An option of the config: `value_of` a record, its values in order, and the distortions it is studied on."""

    option: str
    value_of: Callable[[Record], Any]
    values: dict[Any, str]  # with their names in a table
    distortions: tuple[str, ...]


OTHER_DATA = {"addition": "addition", "svhn_rendered": "synthetic house numbers",
              "synthetic_birds": "synthetic birds", "voxel": "3D MNIST"}  # fmt: skip


def where(record: Record) -> str:
    """The distortion of a record of MNIST, else its data."""
    data = record["config"]["data"]
    return data["name"] if data["name"] in OTHER_DATA else str(data["distortion"]["name"])


def _merged(record: Record) -> tuple[str, bool]:
    distortion = record["config"]["data"]["distortion"]
    return distortion.get("overlap", "maximum"), distortion.get("blank", True)


def _width(record: Record) -> int | str | None:
    width: int | None = record["config"]["model"].get("width")
    if record["schedule"] != "study":
        return "of the study of the recipe"
    return width if _merged(record) == ("maximum", True) else "of the study of TC"


def _recipe(record: Record) -> tuple[str, float, bool] | None:
    if record["schedule"] == "study":  # its one recipe, on other data
        return None
    optimizer = record["config"]["optimizer"]
    bounded = record["config"]["schedule"]["bound"] is not None
    return optimizer["_target_"].rpartition(".")[2], optimizer["lr"], bounded


def _bound(record: Record) -> float | str | None:
    bound = record["config"]["schedule"]["bound"]
    return "of another study" if record["schedule"] != "fast" else bound and bound["localisation"]


STUDIES = {
    "width": Study(
        "model.width",
        _width,
        {None: "400k parameters", 32: "32", 64: "64", 128: "128", 256: "256"},
        ("r", "rts", "tc", "addition"),
    ),
    "p": Study(
        "data.distortion.corner_std_px",
        lambda record: record["config"]["data"]["distortion"]["corner_std_px"],
        {2.0: "2 px", 2.5: "2.5 px", 3.0: "3 px", 3.54: "3.54 px", 4.0: "4 px", 5.0: "5 px"},
        ("p",),
    ),
    "e": Study(
        "data.distortion.control",
        lambda record: record["config"]["data"]["distortion"]["control"],
        {"corners": "corners", "cells": "cells"},
        ("e",),
    ),
    "tc": Study(
        "data.distortion.overlap",
        lambda record: _merged(record) if record["schedule"] == "study" else "of the study of the recipe",
        {("maximum", True): "maximum", ("sum", True): "sum", ("overwrite", True): "overwrite",
         ("maximum", False): "maximum, no blank crops", ("sum", False): "sum, no blank crops"},
        ("tc",),
    ),
    "recipe": Study(
        "optimizer",
        _recipe,
        {("AdamW", 1e-3, False): "AdamW 1e-3", ("AdamW", 2e-3, False): "AdamW 2e-3",
         ("AdamW", 4e-3, False): "AdamW 4e-3", ("Muon", 0.02, False): "Muon 0.02", ("SGD", 0.05, False): "SGD 0.05",
         ("SGD", 0.05, True): "SGD 0.05, bound", ("SGD", 0.2, True): "SGD 0.2, bound"},
        ("r", "rts", "tc"),
    ),
    "bound": Study("schedule.bound", _bound, {None: "no bound", 0.5: "localisation 0.5, rest 20"}, ("addition",)),
    "localisation": Study(
        "schedule.localisation_lr",
        lambda record: record["config"]["schedule"]["localisation_lr"],
        {1e-4: "x 0.0001", 0.1: "x 0.1", 0.3: "x 0.3", 0.5: "x 0.5", 1.0: "x 1"},
        ("svhn_rendered", "synthetic_birds", "voxel"),
    ),
}  # fmt: skip


def results(study: str, records: Iterable[Record]) -> dict[Row, dict[Any, list[Record]]]:
    """For each row and value of a study its finished runs, by seed."""
    what, rows = STUDIES[study], dict[Row, dict[Any, list[Record]]]()
    for record in sorted(records, key=lambda record: record["seed"]):
        if where(record) not in what.distortions or what.value_of(record) not in what.values:
            continue
        width = record["config"]["model"].get("width")
        if study == "width" or isinstance(width, float):  # a float is a part of the paper's widths
            width = None
        row = (record["experiment"], where(record), width, record["steps"], record["config"]["schedule"]["batch_size"])
        rows.setdefault(row, {}).setdefault(what.value_of(record), []).append(record)

    def order(row: Row) -> tuple[int, ...]:
        return what.distortions.index(row[1]), ORDER.index(row[0]), row[3] * row[4], row[2] or 0

    return {row: rows[row] for row in sorted(rows, key=order)}


@cache
def _of_experiment(experiment: str) -> dict[str, Any]:
    """The experiment's label and the paper's figures."""
    content: dict[str, Any] = read_yaml(ROOT / f"conf/experiment/{experiment}.yaml")["row"]
    return content


def named(row: Row, many: bool = False) -> str:
    """The name of a row, with its distortion if the study has `many`."""
    experiment, place, width, *_ = row
    parts = [
        _of_experiment(experiment)["label"],
        f"{width} wide" if width else "",
        OTHER_DATA.get(place, place.upper()),
    ]
    return ", ".join(part for part in (parts if many else parts[:2]) if part)


def paper(row: Row) -> float | None:
    """The paper's test error for a row, %."""
    printed: float | None = _of_experiment(row[0])["paper"].get("rts" if row[1] == "addition" else row[1])
    return printed


def error(runs: list[Record]) -> float:
    """The mean over the seeds."""
    return fmean(float(record["metrics"]["test/error"]) for record in runs)


def shown(runs: list[Record]) -> str:
    """The mean error; of several seeds with their standard deviation and number."""
    errors = [error([record]) for record in runs]
    return f"{error(runs):.2f}" + (f" ± {stdev(errors):.2f} ({len(errors)})" if len(errors) > 1 else "")


def markdown(study: str, records: Iterable[Record]) -> str:
    """A study as a table: validation error, %, beside the paper's test error.

    A second number follows each error.  In the study of widths it is the number of parameters.  Elsewhere it is the
    ratio to the same model's error on R after as many steps, which a short schedule changes least; the paper's figures
    have it, too.
    """
    records = list(records)
    what, rows = STUDIES[study], results(study, records)
    on_r = {(row[0], width, *row[3:]): error(cell) for row, cells in results("width", records).items()
            if row[1] == "r" for width, cell in cells.items()}  # fmt: skip
    if study == "recipe":  # runs of a schedule alone are for results/speed.md
        rows = {row: cells for row, cells in rows.items() if len(cells) > 1}
    used = [value for value in what.values if any(value in cells for cells in rows.values())]
    lines = [["Model", "Steps x batch", *(what.values[value] for value in used), "Paper"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row, cells in rows.items():
        reference = on_r.get((row[0], *row[2:])) if study != "width" else None
        figures = []
        for runs in map(cells.get, used):
            beside = ""
            if runs:
                beside = f" ({runs[0]['params'] / 1000:.0f}k)" if study == "width" else times(error(runs), reference)
            figures.append(f"{shown(runs)}{beside}" if runs else "")
        printed = paper(row)
        if printed is not None:
            figures.append(f"{printed}{times(printed, paper((row[0], 'r', None, 0, 0)) if reference else None)}")
        name = named(row, len(what.distortions) > 1)
        lines.append([name, f"{row[3]:,} x {row[4]}", *figures, *([""] if printed is None else [])])
    return in_markdown(lines)


def times(value: float, reference: float | None) -> str:
    return f" ({value / reference:.1f} R)" if reference else ""


def into_page(page: str, records: list[Record]) -> str:
    """A Markdown page with every study between its lines `<!-- study <name> -->` and `<!-- /study <name> -->`."""
    for study in STUDIES:
        page = put(page, f"study {study}", markdown(study, records))
    return page
