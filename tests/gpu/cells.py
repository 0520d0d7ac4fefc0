"""Training of any experiment's network on a given device, for a few hundred steps."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from composing import compose

from stn.experiments import build
from stn.experiments.training.engine import Training
from stn.experiments.training.job import schedule_of

ROOT = Path(__file__).parents[2]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml"))
BITS = {  # ST-FCN, ST-CNN, addition: what has to be equal to the last bit
    "mnist_st_fcn_affine": ["data/distortion=rts"],
    "mnist_st_fcn_tps": ["data/distortion=e"],
    "mnist_st_cnn_affine": ["data/distortion=tc"],
    "addition_2xst_fcn_projective": [],
}


def steps_on(device: torch.device) -> list[str]:
    """500 steps of the `fast` schedule on a GPU; on a CPU twelve small ones of a small network."""
    if device.type == "cuda":
        return ["schedule=fast", "schedule.steps=500", "schedule.block_steps=100"]
    return ["schedule=smoke", "budget=300000", "schedule.steps=12", "schedule.block_steps=4", "schedule.batch_size=4"]


def training(experiment: str, device: torch.device, *overrides: str, precision: str = "fp32", **how: Any) -> Training:
    """What an experiment trains, with noise for digits (`random_digits`)."""
    config = compose(f"experiment={experiment}", *steps_on(device), *overrides)[0]
    torch.manual_seed(0)
    data = build.data_set(config["data"], ROOT / "data")
    network = build.network(config["model"], data.in_shape, data.classes)
    objective = build.objective(
        config["objective"], precision=precision, runs=ROOT / "runs", data_root=config["data"].get("root")
    )
    return Training(network, data, objective, schedule_of(config), config["seed"], precision, **how)


def fit(module: Training, device: torch.device, blocks: int | None = None, *callbacks: Any, **kwargs: Any) -> Training:
    pl.Trainer(
        max_epochs=blocks or module.schedule.blocks, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1,
        logger=False, callbacks=list(callbacks), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, **kwargs)  # fmt: skip
    return module


def assert_same(one: Training, two: Training) -> None:
    """The same curve and weights, to the last bit."""
    assert one.curve == two.curve
    for (name, a), b in zip(one.network.state_dict().items(), two.network.state_dict().values(), strict=True):
        assert torch.equal(a.cpu(), b.cpu()), f"{name} differs by {(a.cpu() - b.cpu()).abs().max()}"
