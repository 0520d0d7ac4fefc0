"""The spatial transformer as a user meets it: alone, in series, in parallel, deep in a network, copied and traced."""

import pickle
from copy import deepcopy

import pytest
import torch
from jaxtyping import config
from torch import nn

from stn import (
    Affine,
    Affine3d,
    Attention,
    LinearForm,
    Regression,
    SpatialTransformer,
    ThinPlateSpline,
    convolutional,
    fully_connected,
    regular_grid,
    sample,
    trace,
)


def looking_at(theta, in_shape, out_size=None):
    """A transformer with one attention window (s, t_x, t_y) for every input."""
    localisation = nn.Sequential(nn.Flatten(), Regression(torch.Size(in_shape).numel(), Attention(), theta))
    return SpatialTransformer(localisation, Attention(), out_size)


@pytest.mark.parametrize("transform", [Affine(), ThinPlateSpline()], ids=["affine", "tps"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 15, 12)], ids=str)
def test_a_new_transformer_gives_u(transform, shape):
    u = torch.rand(2, *shape)
    v = SpatialTransformer(fully_connected(shape, transform), transform)(u)
    torch.testing.assert_close(v, u, atol=1e-5, rtol=0)


def test_the_output_may_have_another_size_than_the_input():
    u = torch.rand(2, 3, 12, 16)
    v = looking_at((0.5, 0.0, 0.0), (3, 12, 16), out_size=(6, 8))(u)
    torch.testing.assert_close(v, u[..., 3:9, 4:12])


def test_theta_comes_with_v_where_asked_for():
    u = torch.rand(2, 1, 4, 4)
    transformer = looking_at((0.5, 0.0, 0.25), (1, 4, 4))
    v, theta = transformer(u, return_theta=True)
    assert torch.equal(v, transformer(u))
    assert torch.equal(theta, torch.tensor([[0.5, 0.0, 0.25]] * 2))


def test_the_two_halves_make_the_whole():
    torch.manual_seed(0)
    u = torch.rand(2, 1, 8, 8)
    transformer = SpatialTransformer(fully_connected((1, 8, 8), Affine()), Affine(), (5, 6), kernel="bicubic")
    nn.init.normal_(transformer.localisation[-1].weight, std=0.1)
    theta = transformer.localisation(u)
    assert torch.equal(transformer.warp(u, theta), transformer(u))
    expected = sample(u, Affine()(theta, regular_grid((5, 6))), (5, 6), "bicubic")
    assert torch.equal(transformer(u), expected)


class Quarters(nn.Module):
    """Two transformers in series, and after them two in parallel, declared in another order than they are called."""

    def __init__(self):
        super().__init__()
        self.left = looking_at((0.5, -0.5, 0.0), (1, 8, 8), (4, 4))
        self.right = looking_at((0.5, 0.5, 0.0), (1, 8, 8), (4, 4))
        self.series = nn.Sequential(looking_at((1.0, 0.25, 0.0), (1, 8, 8)), looking_at((1.0, 0.0, -0.25), (1, 8, 8)))

    def forward(self, u):
        u = self.series(u)
        return torch.cat([self.right(u), self.left(u)], dim=1)


def test_transformers_work_in_series_and_in_parallel():
    u = torch.rand(2, 1, 8, 8)
    moved = torch.zeros_like(u)
    moved[..., 1:, :-1] = u[..., :-1, 1:]  # by 0.25: one pixel of 8
    expected = torch.cat([moved[..., 2:6, 4:], moved[..., 2:6, :4]], dim=1)
    torch.testing.assert_close(Quarters()(u), expected, atol=1e-5, rtol=0)


def test_every_transformer_of_a_network_learns():
    torch.manual_seed(0)
    network = Quarters()
    network(torch.rand(2, 1, 8, 8)).square().sum().backward()
    assert all(p.grad.any() for p in network.parameters())


def test_a_transformer_works_on_the_feature_maps_of_a_cnn():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        SpatialTransformer(convolutional((4, 26, 26), Affine()), Affine(), (10, 12)),
        nn.Conv2d(4, 2, 3),
    )
    u = torch.rand(2, 1, 28, 28, requires_grad=True)
    v = network(u)
    v.sum().backward()
    assert v.shape == (2, 2, 8, 10)
    assert u.grad.any()
    assert network[0].weight.grad.any()  # through the sampler
    assert network[2].localisation[-1].bias.grad.any()


def test_a_transformer_moves_volumes():
    localisation = nn.Sequential(nn.Flatten(), Regression(4 * 6 * 8, Affine3d()))
    # x by one voxel of 8, y by one of 6, z by one of 4: towards the right, down, and the back
    localisation[-1].bias.data[[3, 7, 11]] = torch.tensor([2 / 8, 2 / 6, 2 / 4])
    u = torch.rand(2, 1, 4, 6, 8)
    v = SpatialTransformer(localisation, Affine3d())(u)
    torch.testing.assert_close(v[..., :-1, :-1, :-1], u[..., 1:, 1:, 1:], atol=1e-5, rtol=0)
    assert SpatialTransformer(localisation, Affine3d(), (2, 3, 5))(u).shape == (2, 1, 2, 3, 5)


@pytest.mark.parametrize("transform", [Affine(), ThinPlateSpline(), LinearForm((8, 8), extra=1)], ids=["a", "t", "l"])
@pytest.mark.parametrize("copy", [deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copy", "pickle"])
def test_a_copy_gives_the_same_and_learns_on_its_own(transform, copy):
    torch.manual_seed(0)
    u = torch.rand(2, 1, 8, 8)
    transformer = SpatialTransformer(fully_connected((1, 8, 8), transform), transform)
    nn.init.normal_(transformer.localisation[-1].weight)
    v = transformer(u)
    twin = copy(transformer)
    assert torch.equal(twin(u), v)
    nn.init.normal_(twin.localisation[-1].weight)
    assert not torch.equal(twin(u), v)
    assert torch.equal(transformer(u), v)


def test_a_state_dict_carries_all_that_was_learnt():
    torch.manual_seed(0)
    u = torch.rand(2, 1, 8, 8)
    trained, fresh = (
        SpatialTransformer(fully_connected((1, 8, 8), transform), transform)
        for transform in (LinearForm((8, 8)), LinearForm((8, 8)))
    )
    for p in trained.parameters():
        nn.init.normal_(p)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(u), trained(u))


@pytest.mark.parametrize("last", [Regression(16, Affine()), nn.Linear(16, 6)], ids=["Regression", "Linear"])
def test_theta_and_grid_are_float32_under_autocast(last):
    torch.manual_seed(0)
    u = torch.rand(2, 1, 8, 8)
    transformer = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), last), Affine(), (40, 40))
    nn.init.normal_(last.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (warp,) = trace(transformer, u)
    assert warp.theta.dtype == warp.source.dtype == torch.float32
    torch.testing.assert_close(warp.source, Affine()(warp.theta, regular_grid((40, 40))), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_v_has_the_dtype_of_u(dtype):
    u = torch.rand(2, 1, 8, 8).to(dtype)
    transformer = SpatialTransformer(fully_connected((1, 8, 8), ThinPlateSpline()).to(dtype), ThinPlateSpline())
    v = transformer(u)
    assert v.dtype == dtype
    # in bfloat16 the control points of the identity are rounded to 8 bits
    torch.testing.assert_close(v, u, atol=0.02 if dtype == torch.bfloat16 else 1e-5, rtol=0)


def test_trace_lists_every_warp_in_the_order_of_the_calls():
    network, u = Quarters(), torch.rand(2, 1, 8, 8)
    warps = trace(network, u)
    assert [warp.name for warp in warps] == ["series.0", "series.1", "right", "left"]
    assert [warp.theta[0].tolist() for warp in warps] == [[1, 0.25, 0], [1, 0, -0.25], [0.5, 0.5, 0], [0.5, -0.5, 0]]
    assert torch.equal(warps[0].u, u)
    assert torch.equal(warps[1].u, warps[0].v)
    assert torch.equal(torch.cat([warps[2].v, warps[3].v], dim=1), network(u))
    for warp in warps:
        assert torch.equal(sample(warp.u, warp.source, warp.v.shape[2:]), warp.v)
        assert not warp.v.requires_grad


def test_trace_keeps_what_a_layer_in_place_then_changes():
    network, u = (
        nn.Sequential(looking_at((-1.0, 0.0, 0.0), (1, 8, 8)), nn.Hardtanh(0, 0.5, inplace=True)),
        torch.rand(2, 1, 8, 8),
    )
    (warp,) = trace(network, u)
    torch.testing.assert_close(warp.v, u.flip(2, 3))


def test_trace_tells_two_calls_of_one_transformer_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.look = looking_at((0.5, 0.0, 0.0), (1, 8, 8))

        def forward(self, u):
            v, _ = self.look(u, return_theta=True)
            return self.look(v)

    first, second = trace(Twice(), torch.rand(2, 1, 8, 8))
    assert (first.name, second.name) == ("look.1", "look.2")
    assert torch.equal(second.u, first.v)


def test_trace_tells_transformers_with_one_transform_apart():
    attention = Attention()
    network = nn.Sequential(looking_at((0.5, 0.0, 0.0), (1, 8, 8)), looking_at((1.0, 0.0, 0.25), (1, 8, 8)))
    for transformer in network:
        transformer.transform = attention
    assert [warp.theta[0].tolist() for warp in trace(network, torch.rand(2, 1, 8, 8))] == [[0.5, 0, 0], [1, 0, 0.25]]


def test_trace_leaves_no_hooks_even_where_the_network_fails():
    network = Quarters()
    trace(network, torch.rand(2, 1, 8, 8))
    with pytest.raises(RuntimeError):
        trace(network, torch.rand(2, 1, 9, 9))
    assert not any(module._forward_hooks for module in network.modules())


def test_trace_sees_an_input_given_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.look = looking_at((0.5, 0.0, 0.0), (1, 8, 8))

        def forward(self, x):
            return self.look(u=x)

    u = torch.rand(2, 1, 8, 8)
    (warp,) = trace(ByName(), u)
    assert torch.equal(warp.u, u)


class Mirror:
    """A user's own transform, as plain as `Transform` allows: x mirrored, and moved by theta."""

    num_params, dims, identity = 1, 2, (0.0,)

    def __call__(self, theta, target):
        return target * torch.tensor([-1, 1]) + theta[:, :, None] * torch.tensor([1, 0])


def test_a_transform_of_your_own_needs_no_nn_module():
    u = torch.rand(2, 1, 8, 8)
    v = SpatialTransformer(fully_connected((1, 8, 8), Mirror()), Mirror())(u)
    torch.testing.assert_close(v, u.flip(-1), atol=1e-5, rtol=0)


def test_trace_sees_a_transform_of_your_own():
    (warp,) = trace(SpatialTransformer(fully_connected((1, 8, 8), Mirror()), Mirror()), torch.rand(2, 1, 8, 8))
    assert warp.source.shape == (2, 64, 2)


def test_an_unknown_kernel_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"^unknown kernel 'linear': choose one of bilinear, nearest, bicubic$"):
        SpatialTransformer(nn.Identity(), Affine(), kernel="linear")


@pytest.mark.parametrize(
    ("transform", "out_size", "message"),
    [
        (Affine(), (5,), r"^Affine needs an out_size of 2 positive whole numbers, got \(5,\)$"),
        (Affine(), (5, 0), r"^Affine needs an out_size of 2 positive whole numbers, got \(5, 0\)$"),
        (Affine3d(), (5, 5), r"^Affine3d needs an out_size of 3 positive whole numbers, got \(5, 5\)$"),
    ],
)
def test_an_out_size_that_does_not_fit_is_refused_at_construction(transform, out_size, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(nn.Identity(), transform, out_size)


@pytest.mark.parametrize(
    ("transform", "u", "theta", "message"),
    [
        (Affine(), (2, 1, 4, 4, 4), (2, 6), r"4 dimensions \(B, C, H, W\), got u \(2, 1, 4, 4, 4\)$"),
        (Affine3d(), (2, 1, 4, 4), (2, 12), r"5 dimensions \(B, C, D, H, W\), got u \(2, 1, 4, 4\)$"),
        (Affine(), (2, 1, 4, 4), (2, 5), r"^Affine takes theta \(B, 6\), got theta \(2, 5\)$"),
        (Affine(), (2, 1, 4, 4), (3, 6), r"need source points \(2, 16, 2\), got \(3, 16, 2\)$"),
        (LinearForm((3, 3)), (2, 1, 4, 4), (2, 6), r"has learnt B for an output of \(3, 3\), got \(4, 4\)$"),
    ],
)
def test_shapes_that_do_not_fit_are_named_in_one_line(transform, u, theta, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in production, where signatures are not checked
    with pytest.raises(ValueError, match=message) as error:
        SpatialTransformer(nn.Identity(), transform).warp(torch.zeros(u), torch.zeros(theta))
    assert "\n" not in str(error.value)
