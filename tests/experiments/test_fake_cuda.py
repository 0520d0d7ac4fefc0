"""Data, forward and loss of a step under fake CUDA tensors: no device is mixed, and no host tensor is made in it."""

import pytest
import torch
from composing import compose
from test_step import EXPERIMENTS, ON_DEVICE, SMALLER, module
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stn.experiments import build
from stn.experiments.datasets.distortions import copied_once
from stn.experiments.training.classification import Classification

pytestmark = pytest.mark.usefixtures("random_digits")
CUDA = torch.device("cuda")
FROM_HOST = {"svhn": (11, (8, 5)), "cub": (200, (8,))}  # classes and the shape of labels


@pytest.fixture(autouse=True)
def nothing_kept():
    """A fake tensor is of use to its own mode alone."""
    yield
    copied_once.cache_clear()


class CudaGenerator(torch.Generator):
    """A generator that says it is on a GPU: one that is cannot be had without a driver."""

    device = CUDA


def moved(mode, tensors):
    return {name: mode.from_tensor(tensor).to(CUDA) for name, tensor in tensors.items()}


def to_fake_gpu(mode, one):
    """Move what a step reads of a module's data and objective, as `on_fit_start` does."""
    names = [name for name in ("digits", "labels", "images") if isinstance(getattr(one.data, name, None), torch.Tensor)]
    for name, tensor in moved(mode, {name: getattr(one.data, name) for name in names}).items():
        setattr(one.data, name, tensor)
    one.data.fits = 8  # volumes: how much memory is free only a driver knows
    if hasattr(one.objective, "encoder"):
        encoder = one.objective.encoder
        encoder.load_state_dict(moved(mode, encoder.state_dict(keep_vars=True)), assign=True)
        one.objective.random = moved(mode, {"random": one.objective.random})["random"]


@pytest.mark.parametrize("experiment", ON_DEVICE)
def test_data_forward_and_loss_stay_on_a_fake_gpu(experiment):
    one = module(experiment)
    small = SMALLER.get(experiment.split("_")[0], [])
    config = compose(f"experiment={experiment}", "schedule=smoke", "budget=400000", *small)[0]
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        to_fake_gpu(mode, one)
        with CUDA:
            network = build.network(config["model"], one.data.in_shape, one.data.classes)
        u, label = one.data.batch(8, CudaGenerator())
        loss, also = one.objective.loss(network, (u, label))
    assert {t.device.type for t in (u, label, loss, *also.values())} == {"cuda"}
    assert loss.shape == ()


@pytest.mark.parametrize("experiment", sorted(set(EXPERIMENTS) - set(ON_DEVICE)))
def test_forward_and_loss_of_photographs_stay_on_a_fake_gpu(experiment):
    kind = experiment.split("_")[0]
    classes, labels = FROM_HOST[kind]
    random = ["model.backbone=efficientnet_lite0", "model.weights=random"] if kind == "cub" else []
    config = compose(f"experiment={experiment}", "schedule=smoke", "budget=400000", *random)[0]
    in_shape, _ = build.shape(config["data"])
    with FakeTensorMode(allow_non_fake_inputs=False), CUDA:
        network = build.network(config["model"], in_shape, classes)
        u, label = torch.rand(8, *in_shape), torch.zeros(labels, dtype=torch.long)
        loss, also = Classification().loss(network, (u, label))
    assert {t.device.type for t in (loss, *also.values())} == {"cuda"}
    assert loss.shape == ()


def test_a_host_tensor_inside_of_a_step_is_found_out():
    class Mixed(nn.Module):
        def forward(self, u):
            return u.flatten(1)[:, :10] + torch.zeros(10)

    one = module("mnist_fcn")
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        to_fake_gpu(mode, one)
        batch = one.data.batch(8, CudaGenerator())
        with pytest.raises(RuntimeError, match=r"device"):
            one.objective.loss(Mixed(), batch)
