"""Localisation networks: theta starts at the identity, and costs the parameters that A.4 implies."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from stn import (
    Affine,
    Affine3d,
    Attention,
    Constrained,
    LinearForm,
    Projective,
    Regression,
    Rotation,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Translation,
    aligned_corners_factors,
    complete_state,
    convolutional,
    fully_connected,
)


@pytest.mark.parametrize("transform", [Affine(), Attention(), Projective(), ThinPlateSpline(), Affine3d()])
def test_regression_starts_at_the_identity_whatever_it_sees(transform):
    theta = Regression(7, transform)(100 * torch.randn(3, 7))
    assert torch.equal(theta, torch.tensor(transform.identity).expand(3, -1))


def test_regression_is_the_identity_plus_a_linear_map():
    layer = Regression(3, Attention())
    layer.weight.data, layer.bias.data = torch.arange(9.0).view(3, 3), torch.tensor([10.0, 20.0, 30.0])
    theta = layer(torch.tensor([[1.0, 0.0, 2.0]]))
    torch.testing.assert_close(theta, torch.tensor([[1 + 4 + 10, 0 + 13 + 20, 0 + 22 + 30.0]]))


def test_regression_can_start_elsewhere():
    theta = Regression(7, Attention(), start=(0.5, 0.25, 0.0))(torch.randn(2, 7))
    assert torch.equal(theta, torch.tensor([[0.5, 0.25, 0.0]] * 2))


@pytest.mark.parametrize("start", [(), (1.0, 0.0), (1.0, 0.0, 0.0, 0.0)])
def test_a_start_of_another_length_is_refused(start):
    with pytest.raises(ValueError, match=rf"^Attention has 3 parameters, got a start of {len(start)}$"):
        Regression(7, Attention(), start)


def test_weight_decay_pulls_theta_to_the_identity_and_not_to_0():
    torch.manual_seed(0)
    layer, x = Regression(7, Affine()), torch.randn(2, 7)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        (0 * layer(x).sum()).backward()
        optimiser.step()
    torch.testing.assert_close(layer(x), torch.tensor(Affine.identity).expand(2, -1), atol=1e-6, rtol=0)


def test_the_identity_is_no_parameter_but_follows_the_dtype():
    layer = Regression(7, ThinPlateSpline()).double()
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert layer(torch.randn(2, 7, dtype=torch.float64)).dtype == torch.float64


def test_the_state_of_an_nn_linear_is_refused_and_converted():
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(7, 6), torch.randn(2, 7)
    linear.bias.data += torch.tensor(Affine.identity)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"identity is missing from the state: .*Regression\.from_linear"):
            Regression(7, Affine()).load_state_dict(linear.state_dict(), strict=strict)
    torch.testing.assert_close(Regression.from_linear(linear, Affine())(x), linear(x))
    with pytest.raises(ValueError, match=r"^Attention has 3 parameters, the linear layer has 6 outputs$"):
        Regression.from_linear(linear, Attention())


@pytest.mark.parametrize("transform", [Affine(), Projective(), Affine3d()], ids=lambda t: type(t).__name__)
def test_a_theta_of_aligned_corners_is_converted(transform):
    torch.manual_seed(0)
    in_size, out_size = (5, 8, 6)[-transform.dims :], (4, 3, 7)[-transform.dims :]
    linear, x, u = torch.nn.Linear(7, transform.num_params), torch.randn(2, 7), torch.rand(2, 1, *in_size)
    linear.weight.data *= 0.2
    linear.bias.data = torch.tensor(transform.identity)
    if isinstance(transform, Projective):
        matrix = torch.cat([linear(x), torch.ones(2, 1)], dim=1).view(2, 3, 3)
        axes = [torch.linspace(-1, 1, n) for n in out_size]
        y, x_t = torch.meshgrid(*axes, indexing="ij")
        points = torch.stack([x_t, y, torch.ones_like(y)], dim=-1) @ matrix[:, None].mT
        grid = points[..., :2] / points[..., 2:]
    else:
        matrix = linear(x).view(2, transform.dims, -1)
        grid = F.affine_grid(matrix, [2, 1, *out_size], align_corners=True)
    expected = F.grid_sample(u, grid, align_corners=True)
    layer = Regression.from_linear(linear, transform, (in_size, out_size))
    v = SpatialTransformer(torch.nn.Identity(), transform, out_size).warp(u, layer(x))
    torch.testing.assert_close(v, expected, atol=1e-5, rtol=0)


def test_aligned_corners_convert_a_window_of_the_same_shape_alone():
    assert aligned_corners_factors(Attention(), (5, 5), (5, 5)) == (1.0, 0.8, 0.8)
    for transform, sizes in [(Attention(), ((5, 5), (5, 6))), (ThinPlateSpline(), ((5, 5), (5, 5)))]:
        with pytest.raises(ValueError, match=r"has no theta that samples the points of align_corners=True"):
            aligned_corners_factors(transform, *sizes)


def test_equal_sides_of_any_length_convert():
    for n in range(2, 300):  # (n - 1) / n * (n / (n - 1)) is not 1 in floating point for many of them
        assert aligned_corners_factors(Translation(), (n, n), (n, n)) == ((n - 1) / n, (n - 1) / n)
        assert aligned_corners_factors(Attention(), (n, 5), (n, 5))[0] == 1


def test_a_state_of_another_start_is_refused_and_rounding_is_not():
    layer = Regression(7, Attention(), (0.5, 1 / 3, 0.0))
    with pytest.raises(RuntimeError, match=r"identity is \(1\.0, 0\.0, 0\.0\) in the state, but \(0\.5, "):
        layer.load_state_dict(Regression(7, Attention()).state_dict())
    half = {key: value.half() for key, value in layer.state_dict().items()}
    layer.load_state_dict(half)
    assert torch.equal(layer.identity, torch.tensor([0.5, 1 / 3, 0.0]))


def test_a_scale_a_size_and_fixed_entries_are_part_of_the_state():
    for here, there in [
        (Translation(0.5), Translation(0.25)), (LinearForm((4, 6)), LinearForm((6, 4))), (Rotation(2.0), Rotation()),
        (Constrained(Affine(), {1: 0.0}), Constrained(Affine(), {1: 0.5})),
    ]:  # fmt: skip
        here.load_state_dict(here.state_dict())
        with pytest.raises(RuntimeError, match=r"fixed is \([^)]*\) in the state, but \("):
            here.load_state_dict(there.state_dict())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Similarity(16 / 9),
        lambda: LinearForm((602, 3)),
        lambda: Translation(1.77),
        lambda: Regression(7, Attention(), (2.3, 1 / 3, 0.0)),
    ],
)
@pytest.mark.parametrize("cast", [torch.nn.Module.bfloat16, torch.nn.Module.half, torch.nn.Module.double])
def test_a_module_takes_its_own_state_whatever_its_dtype(build, cast):
    module = build()
    module.load_state_dict(cast(build()).float().state_dict())
    module.load_state_dict({key: value.half().float() for key, value in build().state_dict().items()})
    module.load_state_dict({key: value.bfloat16() for key, value in build().state_dict().items()})
    cast(module).load_state_dict(module.state_dict())


def test_a_state_without_what_is_fixed_is_refused():
    for module in (Translation(0.5), LinearForm((4, 6))):
        state = {key: value for key, value in module.state_dict().items() if key != "fixed"}
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "fixed"'):
            module.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"fixed is \(1\.0, 0\.0, 3\.0, 0\.0\) in the state, but \(1\.0, 0\.0\)"):
        Constrained(Affine(), {1: 0.0}).load_state_dict(Constrained(Affine(), {1: 0.0, 3: 0.0}).state_dict())


@pytest.mark.parametrize(
    "transform",
    [Translation(0.5), Similarity(2.0), LinearForm((4, 4)), Constrained(Affine(), {1: 0.0})],
    ids=lambda t: type(t).__name__,
)
def test_every_key_of_the_state_is_a_parameter_or_a_buffer(transform):
    network, u = SpatialTransformer(fully_connected((1, 4, 4), transform), transform), torch.rand(2, 1, 4, 4)
    assert set(network.state_dict()) == {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    torch.testing.assert_close(torch.func.functional_call(network, network.state_dict(), (u,), strict=True), network(u))
    assert set(get_model_state_dict(network)) == set(network.state_dict())


def test_a_scale_that_half_precision_does_not_tell_apart_is_refused():
    for here, there in [(Translation(0.501), Translation(0.5)), (Translation(0.5), Translation(0.501))]:
        with pytest.raises(RuntimeError, match=r"fixed is \(0\.5.* in the state, but \(0\.5"):
            here.load_state_dict(there.state_dict())


def test_a_state_is_completed_by_the_constants_of_stn_alone():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("fixed", torch.zeros(1))

    network = torch.nn.Sequential(Own(), Translation(0.5))
    assert set(complete_state(network, {})) == {"1.fixed"}


def test_an_older_state_is_completed_where_asked_for():
    network = SpatialTransformer(fully_connected((1, 4, 4), Translation(0.5)), Translation(0.5))
    older = {key: value for key, value in network.state_dict().items() if not key.endswith(("identity", "fixed"))}
    with pytest.raises(RuntimeError, match=r"stn\.complete_state"):
        network.load_state_dict(older)
    network.load_state_dict(complete_state(network, older))


def test_a_network_built_on_meta_gives_what_its_state_gave():
    torch.manual_seed(0)
    network, u = fully_connected((1, 4, 4), ThinPlateSpline()), torch.rand(2, 1, 4, 4)
    torch.nn.init.normal_(network[-1].weight)
    with torch.device("meta"):
        empty = fully_connected((1, 4, 4), ThinPlateSpline())
    empty = empty.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*empty.parameters(), *empty.buffers()):
            tensor.fill_(torch.nan)
    empty.load_state_dict(network.state_dict())
    assert torch.equal(empty(u), network(u))


@pytest.mark.parametrize(
    "build",
    [Affine, lambda: Translation(0.5), lambda: Similarity(2.0), lambda: LinearForm((4, 6), 1), ThinPlateSpline],
)
def test_a_network_built_on_meta_and_reset_is_a_new_one(build):
    def network():
        transform = build()
        return SpatialTransformer(fully_connected((1, 4, 6), transform), transform)

    with torch.device("meta"):
        empty = network()
    empty = empty.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*empty.parameters(), *empty.buffers()):
            tensor.fill_(torch.nan)
    for module in empty.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    u, new = torch.rand(2, 1, 4, 6), network()
    torch.testing.assert_close(empty(u), new(u))
    new.load_state_dict(empty.state_dict())


def test_theta_is_float32_under_autocast_and_not_rounded_on_the_way():
    torch.manual_seed(0)
    layer, x = Regression(7, Affine()), torch.randn(2, 7).bfloat16()
    torch.nn.init.normal_(layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theta = layer(x)
    torch.testing.assert_close(theta, layer(x.float()), atol=0, rtol=0)


@pytest.mark.parametrize("localisation", [fully_connected, convolutional])
@pytest.mark.parametrize("transform", [Affine(), ThinPlateSpline()], ids=["affine", "tps"])
@pytest.mark.parametrize("in_shape", [(1, 28, 28), (2, 42, 42), (1, 60, 60)], ids=str)
def test_a_localisation_network_starts_at_the_identity(localisation, transform, in_shape):
    theta = localisation(in_shape, transform)(torch.rand(3, *in_shape))
    assert torch.equal(theta, torch.tensor(transform.identity).expand(3, -1))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # FC 32 - FC 32 - FC 32 - theta: weights and biases
        (fully_connected((1, 28, 28), Affine()), (28 * 28 + 1) * 32 + (32 + 1) * 32 * 2 + (32 + 1) * 6),
        (fully_connected((1, 42, 42), Affine()), (42 * 42 + 1) * 32 + (32 + 1) * 32 * 2 + (32 + 1) * 6),
        (fully_connected((1, 60, 60), Affine()), (60 * 60 + 1) * 32 + (32 + 1) * 32 * 2 + (32 + 1) * 6),
        (fully_connected((2, 42, 42), Projective()), (2 * 42 * 42 + 1) * 32 + (32 + 1) * 32 * 2 + (32 + 1) * 8),
        # conv 5x5/20 - conv 5x5/20 - FC 20 - theta; sides: / 2, - 4, / 2 rounded up, - 4
        (  # 28, 14, 10, 5, 1
            convolutional((1, 28, 28), Affine()),
            (25 + 1) * 20 + (25 * 20 + 1) * 20 + (20 * 1 * 1 + 1) * 20 + (20 + 1) * 6,
        ),
        (  # 42, 21, 17, 9, 5
            convolutional((1, 42, 42), Affine()),
            (25 + 1) * 20 + (25 * 20 + 1) * 20 + (20 * 5 * 5 + 1) * 20 + (20 + 1) * 6,
        ),
        (  # 60, 30, 26, 13, 9
            convolutional((1, 60, 60), Affine()),
            (25 + 1) * 20 + (25 * 20 + 1) * 20 + (20 * 9 * 9 + 1) * 20 + (20 + 1) * 6,
        ),
        (
            convolutional((2, 42, 42), ThinPlateSpline()),
            (2 * 25 + 1) * 20 + (25 * 20 + 1) * 20 + (20 * 5 * 5 + 1) * 20 + (20 + 1) * 32,
        ),
    ],
)
def test_a_localisation_network_has_the_parameters_of_a4(network, expected):
    assert sum(p.numel() for p in network.parameters()) == expected


def test_every_fully_connected_layer_but_the_last_has_a_relu():
    torch.manual_seed(0)
    network, u = fully_connected((2, 6, 5), Affine()), torch.rand(3, 2, 6, 5)
    torch.nn.init.normal_(network[-1].weight)
    x, parameters = u.flatten(1), list(network.parameters())
    for weight, bias in zip(parameters[0:6:2], parameters[1:6:2], strict=True):
        x = (x @ weight.T + bias).relu()
    torch.testing.assert_close(network(u), torch.tensor(Affine.identity) + x @ parameters[6].T + parameters[7])


@pytest.mark.parametrize("side_px", [28, 42, 60])
def test_the_convolutional_localisation_has_the_layers_of_a4(side_px):
    torch.manual_seed(0)
    network, u = convolutional((1, side_px, side_px), Affine()), torch.rand(3, 1, side_px, side_px)
    torch.nn.init.normal_(network[-1].weight)
    w1, b1, w2, b2, w3, b3, w4, b4 = network.parameters()
    x = u.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).sum((3, 5))  # every 2 x 2 pixels
    x = F.max_pool2d(F.conv2d(x, w1, b1).relu(), 2, ceil_mode=True)
    x = F.conv2d(x, w2, b2).relu().flatten(1)
    x = (x @ w3.T + b3).relu()
    torch.testing.assert_close(network(u), torch.tensor(Affine.identity) + x @ w4.T + b4)
