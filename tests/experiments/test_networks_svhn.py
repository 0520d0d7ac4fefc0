"""The networks of A.5, their sizes by hand, and what the spatial transformers in series do together."""

import math
from functools import reduce
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from stn import Affine, SpatialTransformer
from stn.experiments import draw
from stn.experiments.networks.sizing import num_params
from stn.experiments.networks.svhn import build
from stn.experiments.training.house_numbers import HouseNumbers, overlap
from stn.experiments.training.logs import pictures
from stn.experiments.training.schedule import Schedule
from stn.transformer import trace


def network(transformers="none", size_px=64, width=0.1, **kwargs):
    torch.manual_seed(0)
    return build((3, size_px, size_px), 11, transformers=transformers, transform=Affine(), width=width, **kwargs)


def by_hand(size_px, transformers):
    """A.5's layers, summed: 5 x 5 convolutions 48 64 128 160 192 192 192 192, three of 3072 units, five softmaxes."""
    channels = (3, 48, 64, 128, 160, 192, 192, 192, 192)
    total = sum(25 * a * b + b for a, b in pairwise(channels))
    total += 192 * (size_px // 16) ** 2 * 3072 + 3072 + 2 * (3072 * 3072 + 3072) + 5 * (3072 * 11 + 11)
    theta = 32 * 32 + 32 + 32 * 6 + 6  # the second layer of 32 and the regression

    def localisation(c, side):
        return c * side * side * 32 + 32 + theta

    if transformers == "single":
        total += 25 * 3 * 32 + 32 + 25 * 32 * 32 + 32 + localisation(32, size_px // 2)
    if transformers == "multi":
        total += localisation(3, size_px) + localisation(48, size_px // 2)
        total += localisation(64, size_px // 2) + localisation(128, size_px // 4)
    return total


PARAMS = {
    ("none", 64): 32_820_951, ("single", 64): 33_898_877, ("multi", 64): 37_937_903,
    ("none", 128): 61_132_503, ("single", 128): 65_356_157, ("multi", 128): 81_584_879,
}  # fmt: skip


@pytest.mark.parametrize(("transformers", "size_px"), PARAMS)
def test_the_networks_of_a5_have_the_parameters_of_its_layers(transformers, size_px):
    with torch.device("meta"):
        params = num_params(build((3, size_px, size_px), 11, transformers=transformers, transform=Affine()))
    assert params == by_hand(size_px, transformers) == PARAMS[transformers, size_px]


@pytest.mark.parametrize("size_px", [64, 128])
def test_the_wide_cnn_has_nearly_the_parameters_of_multi(size_px):
    with torch.device("meta"):
        multi, wide = network("multi", size_px, 0.25), network("none", size_px, 0.25, params_of="multi")
    assert 0.97 * num_params(multi) < num_params(wide) <= num_params(multi)
    assert not any(isinstance(m, SpatialTransformer) for m in wide.modules())


@pytest.mark.parametrize("transformers", ["none", "single", "multi"])
def test_there_are_five_heads_and_the_transformers_of_the_name(transformers):
    net = network(transformers)
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 5, 11)
    layers = [name for name, _ in net.named_children()]
    stand = [
        layers[i + 1 + (name == "st1")] for i, name in enumerate(layers) if name.startswith("st") and name[2:].isdigit()
    ]
    assert stand == {"none": [], "single": ["conv1"], "multi": ["conv1", "conv2", "conv3", "conv4"]}[transformers]
    assert sum(isinstance(m, nn.MaxPool2d) for m in net.children()) == 4


def test_dropout_comes_after_every_hidden_layer_but_the_first():
    net = network("multi")
    names = [name for name, m in net.named_modules() if isinstance(m, nn.Dropout)]
    assert names == [f"dropout{i}" for i in range(2, 12)]
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.5}
    assert not any(isinstance(m, nn.Dropout) for m in network("multi", dropout=0.0).modules())


@pytest.mark.parametrize("transformers", ["none", "multi"])
def test_with_dropout_the_first_loss_is_near_that_of_a_guess(transformers):
    net = network(transformers, width=0.25).train()
    u, label = torch.rand(16, 3, 64, 64), torch.randint(0, 11, (16, 5))
    loss = nn.functional.cross_entropy(net(u).flatten(0, 1), label.flatten())
    assert loss.item() < 4 * math.log(11)  # He's weights alone give a hundred


@pytest.mark.parametrize("transformers", ["single", "multi"])
def test_at_the_start_the_network_is_its_cnn(transformers):
    net, plain = network(transformers).eval(), network().eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    u = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(u), plain(u), atol=1e-4, rtol=1e-4)
    for warp in trace(net, u):
        assert torch.equal(warp.theta, torch.tensor([Affine.identity] * 2))


def test_weight_decay_alone_leaves_a_transformer_where_it_is():
    net = network("multi")
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    (optimizer,) = Schedule(1, 1, 1, sgd, localisation_lr=0.1).optimizers(net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(50):
        optimizer.step()
    for warp in trace(net, torch.rand(2, 3, 64, 64)):
        assert torch.equal(warp.theta, torch.tensor([Affine.identity] * 2))


@pytest.mark.parametrize("transformers", ["none", "single", "multi"])
def test_every_parameter_has_a_gradient_from_the_second_step(transformers):
    net = network(transformers, dropout=0.0)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    u, label = torch.rand(4, 3, 64, 64), torch.randint(0, 11, (4, 5))
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(u).flatten(0, 1), label.flatten()).backward()
        optimizer.step()
    assert [name for name, p in net.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_transformers_in_series_are_one_with_the_composed_map():
    first = torch.tensor([[0.8, 0.1, 0.2, -0.1, 0.7, 0.1]])
    second = torch.tensor([[0.6, 0.0, -0.3, 0.2, 0.5, 0.2]])
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    u = (torch.sin(3 * x) + y**2)[None, None]  # smooth, so that sampling twice costs little

    def warp(u, theta):
        identity = nn.Identity()
        return SpatialTransformer(identity, Affine()).warp(u, theta)

    twice = warp(warp(u, first), second)
    once = warp(u, reduce(Affine().compose, [first, second]))
    torch.testing.assert_close(twice, once, atol=5e-3, rtol=0)
    other = warp(u, reduce(Affine().compose, [second, first]))
    assert (other - once).abs().max() > 0.1  # the order matters


def test_the_box_of_an_affine_map_is_drawn_where_it_samples():
    half = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.25]])  # the middle half, a bit below
    red = np.asarray(draw.box_tile(torch.zeros(3, 8, 8), half, 101))[..., 0] > 200
    y, x = np.nonzero(red)
    assert (x.min(), x.max()) == pytest.approx((25, 75), abs=2)
    assert (y.min(), y.max()) == pytest.approx((37.5, 87.5), abs=2)


@pytest.mark.parametrize(
    ("transformers", "keys"),
    [("none", set()), ("single", {"st1/warp"}), ("multi", {f"st{i}/warp" for i in (1, 2, 3, 4)} | {"composed/box"})],
)
def test_a_run_s_pictures_are_all_warps_and_the_composed_box(transformers, keys):
    assert set(pictures(trace(network(transformers), torch.rand(2, 3, 64, 64)))) == keys


@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.75])
def test_weights_are_he_s_smaller_after_dropout_and_small_in_localisation_networks(dropout):
    net = network("multi", dropout=dropout)
    inside = {layer for t in net.modules() if isinstance(t, SpatialTransformer) for layer in t.localisation.modules()}
    for name, layer in net.named_modules():
        if type(layer) in (nn.Linear, nn.Conv2d):
            fan_in = layer.weight[0].numel()  # He's deviation is (2 / fan_in)^0.5, PyTorch's (1 / 3 fan_in)^0.5
            kept = 1.0 if name in ("conv1", "conv2") else 1 - dropout  # of the units that the layer reads
            expected = (1 / (3 * fan_in)) ** 0.5 if layer in inside else (2 * kept / fan_in) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformers": "double"}, "unknown model.transformers='double': choose one of none, single, multi"),
        ({"params_of": "four"}, "unknown model.params_of='four': choose one of none, single, multi"),
        ({"size_px": 60}, "data.size_px=60 has to be a multiple of 16"),
        ({"width": 0.0}, "model.width=0.0 has to be above 0"),
        ({"dropout": 1.0}, "model.dropout=1.0 from 0 to below 1"),
    ],
)
def test_what_cannot_be_built_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)


# --- what the transformers read, against the number


def maps(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_overlap_is_that_of_a_case_solved_by_hand():
    theta = maps(
        [1, 0, 0, 0, 1, 0],  # all of the image: 1 of 4
        [0.5, 0, 0, 0, 0.5, 0],  # the square itself
        [0.5, 0, 0.5, 0, 0.5, 0],  # half of it beside the number: 0.5 of 1.5
        [-0.5, 0, 0.5, 0, 0.5, 0],  # the same, mirrored
        [0.5, 0, 3, 0, 0.5, 0],  # nowhere near
        [0.3, -0.3, 0, 0.3, 0.3, 0],  # a diamond to 0.6, whose tips of 0.1 are cut: 0.72 - 4 x 0.01 of 1 + 4 x 0.01
        [0, 0, 0, 0, 0, 0],  # a point
    )
    expected = [0.25, 1, 1 / 3, 1 / 3, 0, 0.68 / 1.04, 0]
    torch.testing.assert_close(overlap(theta, 0.5), torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("transformers", ["single", "multi"])
def test_the_overlap_is_of_all_maps_composed(transformers):
    net = network(transformers)
    objective = HouseNumbers()
    objective.prepare(SimpleNamespace(in_shape=(3, 128, 128)))
    batch = torch.rand(3, 3, 64, 64), torch.zeros(3, 5, dtype=torch.long)
    start = objective.test(net, batch)
    side = 64 / 1.3 / 128
    assert start["iou"] == pytest.approx(100 * side**2)
    assert start["iou_above_50"] == 0
    ends = [module for module in net.modules() if isinstance(module, SpatialTransformer)]
    ends[0].localisation[-1].bias.data[2] = 0.2  # the first moves, the last zooms in
    ends[-1].localisation[-1].bias.data[[0, 4]] = side - 1
    moved = objective.test(net, batch)
    assert moved["iou"] == pytest.approx(100 * (2 * side - 0.2) / (2 * side + 0.2), abs=0.01)
    assert moved["iou_above_50"] == 100


def test_a_network_without_a_transformer_has_no_overlap():
    objective = HouseNumbers()
    objective.prepare(SimpleNamespace(in_shape=(3, 128, 128)))
    assert set(objective.test(network(), (torch.rand(2, 3, 64, 64), torch.zeros(2, 5, dtype=torch.long)))) == {"error"}
