"""Data, forward and loss of a step under fake CUDA tensors: no device is mixed, and no host tensor is made in it."""

import pytest
import torch
from composing import compose
from test_step import ON_DEVICE, module
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stn.experiments import build

pytestmark = pytest.mark.usefixtures("one_thread", "random_digits")
CUDA = torch.device("cuda")


class CudaGenerator(torch.Generator):
    """A generator that says it is on a GPU: one that is cannot be had without a driver."""

    device = CUDA


@pytest.mark.parametrize("experiment", ON_DEVICE)
def test_data_forward_and_loss_stay_on_a_fake_gpu(experiment):
    one = module(experiment)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        for name in ("digits", "labels"):
            setattr(one.data, name, mode.from_tensor(getattr(one.data, name)).to(CUDA))
        with CUDA:
            config = compose(f"experiment={experiment}", "schedule=smoke", "budget=400000")[0]
            network = build.network(config["model"], one.data.in_shape, one.data.classes)
        u, label = one.data.batch(8, CudaGenerator())
        loss, also = one.objective.loss(network, (u, label))
    assert {t.device.type for t in (u, label, loss, *also.values())} == {"cuda"}
    assert loss.shape == ()


def test_a_host_tensor_inside_of_a_step_is_found_out():
    class Mixed(nn.Module):
        def forward(self, u):
            return u.flatten(1)[:, :10] + torch.zeros(10)

    one = module("mnist_fcn")
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        for name in ("digits", "labels"):
            setattr(one.data, name, mode.from_tensor(getattr(one.data, name)).to(CUDA))
        batch = one.data.batch(8, CudaGenerator())
        with pytest.raises(RuntimeError, match=r"device"):
            one.objective.loss(Mixed(), batch)
