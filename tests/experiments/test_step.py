"""The step as a function of tensors: it waits for no value, in any experiment whose data live on the device."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from stn.experiments import build
from stn.experiments.training.engine import Training, block_seed
from stn.experiments.training.job import schedule_of
from stn.experiments.training.step import step

pytestmark = pytest.mark.usefixtures("random_digits")
ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml"))
# photographs and house numbers come from files by way of the host: their steps cannot be captured
ON_DEVICE = [name for name in EXPERIMENTS if name.split("_")[0] in ("mnist", "addition", "voxel", "coloc")]
SMALLER = {"voxel": ["data.size_px=24"], "coloc": ["data.images=8"]}
ops = torch.ops.aten
WAITS = {  # what hands a value to the host, or allocates by one
    ops._local_scalar_dense, ops.item, ops.is_nonzero, ops.equal, ops.nonzero, ops.masked_select, ops._unique2,
    ops.unique_consecutive, ops.allclose,
}  # fmt: skip


class NoSync(TorchDispatchMode):
    """Fails on whatever would make a GPU wait for the host, or the host for a GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in WAITS:
            raise AssertionError(f"{function} waits for a value")
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (ops._to_copy, ops.copy_):
            devices = {t.device.type for t in (*args, out) if isinstance(t, torch.Tensor)}
            assert len(devices) == 1, f"{function} copies between {devices}"
        return out


def module(experiment: str, *overrides: str) -> Training:
    words = ["schedule=smoke", "budget=400000", "precision=fp32", *SMALLER.get(experiment.split("_")[0], [])]
    config = compose(f"experiment={experiment}", *words, *overrides)[0]
    torch.manual_seed(0)
    data = build.data_set(config["data"], ROOT / "data")
    network = build.network(config["model"], data.in_shape, data.classes)
    objective = build.objective(config["objective"], precision="fp32", runs=ROOT / "runs", data_root=ROOT / "data")
    objective.prepare(data)
    return Training(network, data, objective, schedule_of(config), 0, "fp32")


def take(one: Training, steps: int, draw: Callable | None = None) -> list[float]:
    """The losses of some steps."""
    optimizers = one.schedule.optimizers(one.network)
    schedulers, bounds = one.schedule.schedulers(optimizers), one.schedule.bounds(one.network)
    generator = torch.Generator().manual_seed(block_seed(0, 0))
    losses = []
    for _ in range(steps):
        with NoSync():
            values = step(one, one.objective, draw or (lambda g: one.data.batch(8, g)), generator, optimizers, bounds)
        for scheduler in schedulers:
            scheduler.step()
        losses.append(values["loss"])
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("experiment", ON_DEVICE)
def test_a_step_waits_for_no_value(experiment):
    one = module(experiment)
    assert one.data.on_device
    assert np.isfinite(take(one, 2)).all()


@pytest.mark.parametrize("experiment", ["mnist_st_cnn_affine", "coloc_t"])
def test_a_step_leaves_no_node_of_autograd_behind(experiment, monkeypatch):
    """A parameter's node knows the stream that it was made on: one of another stream would spoil a recording."""
    one = module(experiment)
    before = []

    def nodes():
        return [get_gradient_edge(p).node.metadata for p in one.network.parameters()]

    def draw(generator):
        before.extend("old" in node for node in nodes())
        return one.data.batch(8, generator)

    def loss(network, batch, loss=one.objective.loss):
        out = loss(network, batch)
        for node in nodes():
            node["old"] = True
        return out

    monkeypatch.setattr(one.objective, "loss", loss)
    gc.disable()
    try:
        take(one, 3, draw)
    finally:
        gc.enable()
    assert not any(before)


@pytest.mark.parametrize("distortion", ["rts", "p", "e", "tc"])
def test_no_distortion_waits_for_a_value(distortion):
    take(module("mnist_st_fcn_affine", f"data/distortion={distortion}"), 1)


def test_a_step_that_waits_is_found_out():
    one = module("mnist_fcn")

    def draw(generator):
        u, label = one.data.batch(8, generator)
        return u + u.mean().item(), label

    with pytest.raises(AssertionError, match="waits for a value"):
        take(one, 1, draw)
