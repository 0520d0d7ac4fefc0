"""Recorded networks by name: record and weights together, without the data that they were trained on."""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from stn.datasets.distortions import DISTORTIONS
from stn.results import records

MNIST = "stn.datasets.mnist.DistortedMnist"


@dataclass(frozen=True)
class Recorded:
    """A trained network in eval mode; `in_shape` is (1, S, S), the images that it takes."""

    name: str
    record: records.Record
    network: nn.Module
    in_shape: tuple[int, int, int]


def find(root: Path, runs: Path | None = None) -> dict[str, tuple[Path, Path]]:
    """Name -> (record, weights): finished runs below `runs` (root/runs), then those that are kept in root/results."""
    own = {p.parent.name: (p, p.parent / "weights.pt") for p in sorted((runs or root / "runs").rglob("result.json"))}
    kept = {
        p.stem: (p, root / "results/weights" / f"{p.stem}.pt")
        for p in sorted((root / "results/records").glob("*.json"))
    }
    return {name: pair for name, pair in (kept | own).items() if pair[1].exists()}


def longest(experiment: str, root: Path, runs: Path, **data: Any) -> tuple[records.Record, Path] | None:
    """Record and weights of the longest-trained network of an experiment with these values in its data, if any."""
    found = [(records.read(path), weights) for path, weights in find(root, runs).values()]
    mine = [
        (record, weights)
        for record, weights in found
        if record["experiment"] == experiment and data.items() <= record["config"]["data"].items()
    ]
    return max(mine, key=lambda pair: pair[0]["steps"], default=None)


def transforms_on(distortion: str, root: Path) -> str:
    """The name of the recorded network with a spatial transformer that errs least on a distortion of MNIST."""
    errors = {}
    for name, (path, _) in find(root).items():
        record = records.read(path)
        config = record["config"]
        if config["data"].get("distortion") == distortion and config["model"].get("transform"):
            errors[name] = record["metrics"].get("test/error", 100.0)
    if not errors:
        raise ValueError(f"no recorded spatial transformer on {distortion}: name another with --model")
    return min(errors, key=lambda name: (errors[name], name))


def load(name: str, root: Path) -> Recorded:
    """The network of that name, or of the one name that begins so.  Raises ValueError where that is not one."""
    known = find(root)
    fits = [name] if name in known else [n for n in known if n.startswith(name)]
    if len(fits) != 1:
        what = f"{len(fits)} recorded networks begin with" if fits else "no recorded network is called"
        raise ValueError(f"{what} {name!r}: choose one of {', '.join(fits or known) or 'none, there is no weights.pt'}")
    path, weights = known[fits[0]]
    record = records.read(path)
    data = record["config"]["data"]
    if data.get("_target_") != MNIST:
        raise ValueError(
            f"{fits[0]} was trained on {data.get('_target_')}: this takes networks for distorted MNIST alone"
        )
    side_px = DISTORTIONS[data["distortion"]].canvas_px
    in_shape = (1, side_px, side_px)
    # as stn.training.job builds it, whose import takes longer than all of this
    network = instantiate(record["config"]["model"], _partial_=True, _convert_="all")(in_shape=in_shape, classes=10)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, UnpicklingError) as error:  # of another network, empty, damaged
        reason = (str(error).splitlines() or ["the file ends too early"])[0]
        raise ValueError(f"the weights {weights} do not fit their record: {reason}") from None
    return Recorded(fits[0], record, network.eval(), in_shape)
