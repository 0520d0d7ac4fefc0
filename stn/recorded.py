"""Recorded networks by name: record and weights together, without the data that they were trained on."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from stn.datasets.distortions import DISTORTIONS
from stn.results import records
from stn.training.job import build_network

MNIST = "stn.datasets.mnist.DistortedMnist"


@dataclass(frozen=True)
class Recorded:
    """A trained network in eval mode; `in_shape` is (1, S, S), the images that it takes."""

    name: str
    record: records.Record
    network: nn.Module
    in_shape: tuple[int, int, int]


def find(root: Path) -> dict[str, tuple[Path, Path]]:
    """Name -> (record, weights): finished runs in root/runs, then those that are kept in root/results."""
    runs = {p.parent.name: (p, p.parent / "weights.pt") for p in sorted((root / "runs").rglob("result.json"))}
    kept = {
        p.stem: (p, root / "results/weights" / f"{p.stem}.pt")
        for p in sorted((root / "results/records").glob("*.json"))
    }
    return {name: pair for name, pair in (kept | runs).items() if pair[1].exists()}


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
    network = build_network(record["config"]["model"], SimpleNamespace(in_shape=in_shape, classes=10))
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"the weights {weights} do not fit their record: {str(error).splitlines()[0]}") from None
    return Recorded(fits[0], record, network.eval(), in_shape)
