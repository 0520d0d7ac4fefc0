"""The figures of README and docs, by topic; scripts/figures.py draws them by name."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from stn.experiments import build, zoo
from stn.experiments.command import ROOT

SIDE_PX = 84  # of one small image in a figure


class Untrained(ValueError):
    """The network that a figure shows has not been trained here."""


def ranges(distortion: str) -> Any:
    """The settings of conf/data/distortion."""
    return OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/data/distortion/{distortion}.yaml"))


def distorted_mnist(distortion: str) -> Any:
    """MNIST under a distortion with the ranges of conf/data/distortion."""
    return build.data_set({"name": "mnist", "distortion": ranges(distortion)}, ROOT / "data")


def trained(experiment: str, runs: Path, **data: Any) -> tuple[nn.Module, Any]:
    """The network of an experiment that was trained longest on data with these values, and its data set.

    Raises Untrained where neither `runs` nor results/weights has one.
    """
    name = zoo.longest(experiment, ROOT, runs, **data)
    if name is None:
        keys = {"name": "data", "distortion": "data/distortion"}
        on = "".join(f" {keys.get(key, f'data.{key}')}={value}" for key, value in data.items())
        raise Untrained(f"its network is not trained yet: run `python run.py experiment={experiment}{on}`")
    recorded = zoo.load(name, ROOT, runs)
    return recorded.network, build.data_set(recorded.record["config"]["data"], ROOT / "data")
