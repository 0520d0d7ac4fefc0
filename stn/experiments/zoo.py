"""Recorded networks by name: the one place where a record and its weights become a network again.

A record may come from anybody, so it is data.  `build.network` builds the network from known names, and the weights are
safetensors, which hold only numbers.  A record that asks for anything else is refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stn.experiments import build
from stn.experiments.command import ROOT
from stn.experiments.datasets.fetch import sha256
from stn.experiments.errors import first_line
from stn.experiments.results import records
from stn.experiments.results.checks import parsed
from stn.localisation import complete_state

LARGEST_PX = 1024  # side of an input: this code writes no record with a larger one
OPTIMISER = re.compile(r"torch\.optim(\.\w+)+")  # the only import paths that a record may name; the zoo calls none


@dataclass(frozen=True)
class Entry:
    """A record and the file of its weights, not loaded yet."""

    record: records.Record
    weights: Path


@dataclass(frozen=True)
class Recorded:
    """A trained network in eval mode; `in_shape` is the shape of one input, `sha256` that of the weights file."""

    id: str
    record: records.Record
    network: nn.Module
    in_shape: tuple[int, ...]
    sha256: str


def find(root: Path = ROOT, runs: Path | None = None, damaged: list[str] | None = None) -> dict[str, Entry]:
    """Id -> record and weights: finished runs in `runs` (default root/runs), then those kept in root/results.

    Smoke runs are left out.  Errors of unreadable records in `runs` are appended to `damaged`.
    """
    wrong = [] if damaged is None else damaged
    found: dict[str, Entry] = {}
    for path in sorted((runs or root / "runs").rglob("result.json")):
        try:
            record = records.read(path)
        except ValueError as error:
            wrong.append(str(error))
            continue
        if not record["smoke"]:
            found.setdefault(record["id"], Entry(record, path.parent / "weights.safetensors"))
    for record in records.read_kept(root / "results"):
        found.setdefault(record["id"], Entry(record, root / "results/weights" / f"{record['id']}.safetensors"))
    return {name: entry for name, entry in found.items() if entry.weights.is_file()}


def tested(record: records.Record) -> bool:
    """Whether a run was tested on the test images, and so trained on all others."""
    return bool(record["config"]["data"].get("test_split", "test") == "test")


def longest(experiment: str, root: Path = ROOT, runs: Path | None = None, **data: Any) -> str | None:
    """The id of the network of an experiment that was trained longest on data with these values; None if there is none.

    `distortion` is given by its name.  Networks of runs that were tested on validation data do not count.
    """

    def fits(record: records.Record) -> bool:
        has = record["config"]["data"]
        has = has | {"distortion": has["distortion"]["name"]} if "distortion" in has else has
        return record["experiment"] == experiment and tested(record) and data.items() <= has.items()

    mine = {name: entry.record["steps"] for name, entry in find(root, runs).items() if fits(entry.record)}
    return max(mine, key=lambda name: mine[name], default=None)


def best_transformer(distortion: str, root: Path = ROOT, runs: Path | None = None) -> str:
    """The id of the network with a spatial transformer that has the lowest test error on a distortion of MNIST."""
    errors = {}
    for name, entry in find(root, runs).items():
        if not tested(entry.record):
            continue
        data, model = entry.record["config"]["data"], entry.record["config"]["model"]
        if data["name"] == "mnist" and data["distortion"]["name"] == distortion and model.get("transform"):
            errors[name] = entry.record["metrics"].get("test/error", 100.0)
    if not errors:
        raise ValueError(f"no recorded spatial transformer on {distortion}: choose another network with --model")
    return min(errors, key=lambda name: (errors[name], name))


def _listed(names: Iterable[str], most: int = 12) -> str:
    known = list(names)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")


def load(name: str, root: Path = ROOT, runs: Path | None = None) -> Recorded:
    """The network with this id or beginning of an id; of several, the one that is kept in results/weights.

    Raises ValueError if there is none, or more than one.
    """
    damaged: list[str] = []
    known = find(root, runs, damaged)
    fits = [name] if name in known else [each for each in known if each.startswith(name)]
    if not fits:
        of_name = [line for line in damaged if f"/{name}" in line]
        choice = _listed(known) if known else "none, there are no weights"
        raise ValueError(of_name[0] if of_name else f"no recorded network is called {name!r}: choose one of {choice}")
    if len(fits) > 1:  # so that a short name in the docs means the same network after the reader's own runs
        kept = [each for each in fits if (root / "results/weights" / f"{each}.safetensors").is_file()]
        fits = kept if len(kept) == 1 else fits
    if len(fits) > 1:
        raise ValueError(f"{len(fits)} recorded networks begin with {name!r}: choose one of {_listed(fits)}")
    entry = known[fits[0]]
    in_shape = _in_shape(entry.record)
    network = _network(entry.record, in_shape)
    digest = sha256(entry.weights)
    _check_listed(fits[0], entry.weights, digest, root)
    try:
        network.load_state_dict(complete_state(network, _tensors(fits[0], entry.weights)))
    except RuntimeError as error:
        raise ValueError(f"the weights {entry.weights} do not fit their record: {first_line(error)}") from None
    return Recorded(fits[0], entry.record, network.eval(), in_shape, digest)


def _in_shape(record: records.Record) -> tuple[int, ...]:
    shape = record["in_shape"]
    if not (
        isinstance(shape, list)
        and len(shape) in (3, 4)
        and all(isinstance(side, int) and 0 < side <= LARGEST_PX for side in shape)
    ):
        raise ValueError(f"the record {record['id']} has in_shape={shape!r}, which no network here has")
    return tuple(shape)


def _network(record: records.Record, in_shape: tuple[int, ...]) -> nn.Module:
    """The untrained network of a record.  Backbones start without pre-trained weights, since all are loaded later."""
    _refuse_targets(record["id"], record["config"])
    model = record["config"]["model"]
    try:
        if model.get("name") == "cub":
            model = model | {"weights": "random"}
        return build.network(model, in_shape, record["classes"])
    except (TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"the network of the record {record['id']} cannot be built: {first_line(error)}") from error
    except ValueError as error:
        raise ValueError(f"the network of the record {record['id']} cannot be built: {error}") from None


def _refuse_targets(name: str, value: Any) -> None:
    """Raise ValueError if a config names any import path except PyTorch's optimisers."""
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if target is not None and not (isinstance(target, str) and OPTIMISER.fullmatch(target)):
            raise ValueError(f"the record {name} asks to call {target!r}: refused, since a record is data")
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            _refuse_targets(name, inner)


def _check_listed(name: str, path: Path, digest: str, root: Path) -> None:
    """Raise ValueError on kept weights that do not match results/weights/index.json."""
    index = root / "results/weights/index.json"
    if path.parent != index.parent:
        return
    listed = parsed(index.read_bytes(), str(index), f"`git checkout {index}` restores it")
    if not isinstance(listed, dict) or not isinstance(listed.get(name), dict) or listed[name].get("sha256") != digest:
        raise ValueError(f"the weights {path} are not those of {index}: `git checkout {path}` restores them")


def _tensors(name: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, float16 as float32.  Raises ValueError on another file or run."""
    try:
        with safe_open(path, framework="pt") as file:
            of = (file.metadata() or {}).get("id", name)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    except SafetensorError as error:
        raise ValueError(f"the weights {path} are damaged: {first_line(error)}") from None
    if of != name:
        raise ValueError(f"the weights {path} belong to another run, {of}")
    return {key: t.to(torch.float32) if t.dtype == torch.float16 else t for key, t in tensors.items()}
