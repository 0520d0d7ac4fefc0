"""The networks of Table 1: their budgets, what the classifier sees, and that all of each learns."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from stn import Affine, Projective, ThinPlateSpline
from stn.experiments import networks
from stn.experiments.networks.mnist import WIDTHS, SlimConv2d, build, cnn, fcn
from stn.experiments.networks.sizing import num_params, solve_width
from stn.localisation import convolutional, fully_connected
from stn.transforms import Transform

BUDGET = 400_000
FAMILIES = {
    "FCN": {"classifier": fcn},
    "CNN": {"classifier": cnn},
    "ST-FCN": {"classifier": fcn, "localisation": fully_connected},
    "ST-CNN": {"classifier": cnn, "localisation": convolutional},
}
TRANSFORMS = {"Aff": Affine(), "Proj": Projective(), "TPS": ThinPlateSpline()}


def make(family, side_px, transform="Aff", budget=BUDGET, channels=1, classes=10):
    given = {"transform": TRANSFORMS[transform]} if family.startswith("ST") else {}
    return build((channels, side_px, side_px), classes, budget, **FAMILIES[family], **given)


@pytest.mark.parametrize(
    ("family", "side_px", "expected"),
    [
        ("FCN", 28, 399_615),
        ("FCN", 42, 399_566),
        ("FCN", 60, 397_943),
        ("CNN", 28, 399_086),
        ("CNN", 42, 391_690),
        ("CNN", 60, 391_376),
        ("ST-FCN", 28, 399_020),
        ("ST-FCN", 42, 400_000),
        ("ST-FCN", 60, 399_616),
        ("ST-CNN", 28, 392_678),
        ("ST-CNN", 42, 399_668),
        ("ST-CNN", 60, 395_016),
    ],
)
def test_every_model_spends_the_same_budget(family, side_px, expected):
    network = make(family, side_px)
    assert num_params(network) == sum(p.numel() for p in network.parameters()) == expected
    assert 0.95 * BUDGET < expected <= BUDGET


@pytest.mark.parametrize("side_px", [28, 42, 60])
def test_a_width_asked_for_is_the_classifier_s_on_every_canvas(side_px):
    plain = build((1, side_px, side_px), 10, BUDGET, fcn, width=256)
    warped = build((1, side_px, side_px), 10, BUDGET, fcn, fully_connected, Affine(), width=256)
    assert plain[1].weight.shape == (256, side_px**2)
    assert [layer.out_features for layer in warped.classifier if hasattr(layer, "out_features")] == [256, 256, 10]
    assert build((1, side_px, side_px), 10, BUDGET, cnn, width=32)[0][0].out_channels == 32


@pytest.mark.parametrize(
    ("family", "side_px", "expected"),
    [
        ("FCN", 28, (784 + 1) * 256 + 257 * 256 + 257 * 10),
        ("FCN", 60, (3600 + 1) * 256 + 257 * 256 + 257 * 10),
        ("CNN", 28, (81 + 1) * 64 + (49 * 64 + 1) * 64 + (64 * 2**2 + 1) * 10),
        ("CNN", 42, (81 + 1) * 64 + (49 * 64 + 1) * 64 + (64 * 6**2 + 1) * 10),
    ],
)
def test_without_a_budget_it_has_the_stated_256_units_or_64_filters(family, side_px, expected):
    assert num_params(make(family, side_px, budget=None)) == expected
    transformed = make(f"ST-{family}", side_px, budget=None)
    assert [p.shape[0] for p in transformed.classifier.parameters()] == [
        p.shape[0] for p in make(family, side_px, budget=None).parameters()
    ]


@pytest.mark.parametrize("width", [0, -1, True])
def test_a_width_that_is_no_number_of_units_is_refused(width):
    with pytest.raises(ValueError, match=rf"^model\.width={width!r} has to be a whole number, 1 or more, or null$"):
        build((1, 28, 28), 10, BUDGET, fcn, width=width)


@pytest.mark.parametrize(("side_px", "pooled"), [(28, 2), (21, 1), (42, 6), (30, 3), (60, 10)])
def test_a_cnn_has_the_parameters_of_a4(side_px, pooled):
    # sides: - 8, / 2 rounded up, - 6, / 2 rounded up
    expected = (81 + 1) * 8 + (49 * 8 + 1) * 8 + (8 * pooled**2 + 1) * 10
    assert num_params(cnn((1, side_px, side_px), 8, 10)) == expected


def test_an_fcn_has_the_parameters_of_a4():
    assert num_params(fcn((2, 42, 42), 16, 19)) == (2 * 42 * 42 + 1) * 16 + (16 + 1) * 16 + (16 + 1) * 19


@pytest.mark.parametrize("side_px", [28, 21])
def test_a_cnn_has_the_layers_of_a4(side_px):
    torch.manual_seed(0)
    network, u = cnn((2, side_px, side_px), 8, 10), torch.rand(3, 2, side_px, side_px)
    w1, b1, w2, b2, w3, b3 = network.parameters()
    x = F.max_pool2d(F.conv2d(u, w1, b1).relu(), 2, ceil_mode=True)
    x = F.max_pool2d(F.conv2d(x, w2, b2).relu(), 2, ceil_mode=True)
    torch.testing.assert_close(network(u), x.flatten(1) @ w3.T + b3)


def test_an_fcn_has_the_layers_of_a4():
    torch.manual_seed(0)
    network, u = fcn((2, 6, 5), 16, 10), torch.rand(3, 2, 6, 5)
    w1, b1, w2, b2, w3, b3 = network.parameters()
    x = ((u.flatten(1) @ w1.T + b1).relu() @ w2.T + b2).relu()
    torch.testing.assert_close(network(u), x @ w3.T + b3)


def test_only_trainable_parameters_count():
    network = fcn((1, 4, 4), 3, 2)
    network[1].requires_grad_(False)
    assert num_params(network) == (3 + 1) * 3 + (3 + 1) * 2


@pytest.mark.parametrize("budget", [19, 35, 36, 54, 55, 1000])
def test_solve_width_gives_the_largest_width_within_the_budget(budget):
    def cost(width):  # of an FCN from 8 values to 4 classes: 19, 36, 55, ...
        return (8 + 1) * width + (width + 1) * width + (width + 1) * 4

    width = solve_width(lambda width: fcn((1, 2, 4), width, 4), budget)
    assert cost(width) <= budget < cost(width + 1)


def test_a_budget_too_small_is_refused_with_the_smallest_count():
    with pytest.raises(ValueError, match=r"^budget=18 is too small: .* has 19 parameters$") as error:
        solve_width(lambda width: fcn((1, 2, 4), width, 4), 18)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side_px", [28, 42, 60])
def test_logits_have_the_shape_of_batch_and_classes(family, side_px):
    network = make(family, side_px, channels=2, classes=19)
    assert network(torch.rand(3, 2, side_px, side_px)).shape == (3, 19)


def test_the_kernel_asked_for_is_the_one_that_samples():
    network = build((1, 28, 28), 10, BUDGET, fcn, fully_connected, Affine(), kernel="bicubic")
    assert network.transformer.kernel == "bicubic"


def test_a_localisation_without_a_transform_is_refused():
    with pytest.raises(ValueError, match=r"^model\.transform is missing: a localisation network needs one"):
        build((1, 28, 28), 10, BUDGET, fcn, fully_connected)


def test_a_classifier_without_a_stated_width_needs_one_or_a_budget(monkeypatch):
    monkeypatch.delitem(WIDTHS, fcn)
    with pytest.raises(ValueError, match=r"^fcn has no stated width: set [^\n]* or add it to WIDTHS in "):
        build((1, 28, 28), 10, None, fcn)
    assert num_params(build((1, 28, 28), 10, BUDGET, fcn)) <= BUDGET


@pytest.mark.parametrize("given", [{"transform": Affine()}, {"transformers": 2}])
def test_a_transformer_without_a_localisation_is_refused(given):
    with pytest.raises(ValueError, match=r"^model\.localisation is missing: [^\n]* set model\.transform=null [^\n]*$"):
        build((1, 28, 28), 10, BUDGET, fcn, **given)


@pytest.mark.parametrize("family", ["ST-FCN", "ST-CNN"])
@pytest.mark.parametrize(("side_px", "seen_px"), [(28, 28), (42, 21), (60, 30)])
def test_the_classifier_sees_v_averaged_by_2_on_a_large_canvas(family, side_px, seen_px):
    network, u = make(family, side_px), torch.rand(2, 1, side_px, side_px)
    seen = []
    network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(u)
    assert seen[0].shape == (2, 1, seen_px, seen_px)
    torch.testing.assert_close(seen[0], F.adaptive_avg_pool2d(u, seen_px), atol=1e-5, rtol=0)  # V = U at the start


@pytest.mark.parametrize("family", ["FCN", "CNN"])
@pytest.mark.parametrize("side_px", [28, 42, 60])
def test_pooled_is_an_st_network_whose_transformer_does_nothing(family, side_px):
    st, u = make(f"ST-{family}", side_px), torch.rand(4, 1, side_px, side_px)
    classifier = FAMILIES[family]["classifier"]
    control = build((1, side_px, side_px), 10, num_params(st.classifier), classifier, pooled=True)
    control.classifier.load_state_dict(st.classifier.state_dict())
    torch.testing.assert_close(control(u), st(u), atol=1e-4, rtol=0)  # theta is the identity at the start


def test_pooled_with_a_transformer_is_refused():
    with pytest.raises(ValueError, match=r"^model\.pooled=true is for a classifier without a transformer: [^\n]*$"):
        build((1, 42, 42), 10, BUDGET, fcn, fully_connected, Affine(), pooled=True)


@pytest.mark.parametrize("family", ["ST-FCN", "ST-CNN"])
@pytest.mark.parametrize("side_px", [28, 42])
def test_the_classifier_sees_v_and_nothing_of_u_beside_it(family, side_px):
    torch.manual_seed(0)
    network, u = make(family, side_px), torch.rand(2, 1, side_px, side_px)
    # a window over the middle half; theta does not depend on u, since the regression's weights are zero
    network.transformer.localisation[-1].bias.data[[0, 4]] = -0.5
    outside, inside = torch.rand_like(u), u.clone()
    middle = slice(side_px // 4 - 1, -(side_px // 4 - 1))  # and the pixels on its edge
    outside[..., middle, middle] = u[..., middle, middle]
    inside[..., side_px // 2, side_px // 2] += 1
    assert torch.equal(network(outside), network(u))
    assert not torch.allclose(network(inside), network(u))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_parameter_has_a_gradient_from_the_second_step(family, transform):
    torch.manual_seed(0)
    network = make(family, 28, transform, budget=80_000)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    u, label = torch.rand(8, 1, 28, 28), torch.arange(8)
    without = []
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(network(u), label).backward()
        without.append({name for name, p in network.named_parameters() if not p.grad.any()})
        optimiser.step()
    # at the first step the zero weights of the regression hold back the gradient of the layers before it
    held_back = network.transformer.localisation[:-1].named_parameters() if family.startswith("ST") else []
    assert without == [{f"transformer.localisation.{name}" for name, _ in held_back}, set()]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_slim_convolution_has_a_convolution_s_gradients(channels):
    slim = SlimConv2d(channels, 5, 9).double()
    u = torch.rand(3, channels, 14, 12, dtype=torch.float64)
    through = [u.clone().requires_grad_(), u.clone().requires_grad_()]
    ours = slim(through[0])
    gradients = torch.autograd.grad(ours.square().sum(), [through[0], slim.weight, slim.bias])
    expected = F.conv2d(through[1], slim.weight, slim.bias)
    wanted = torch.autograd.grad(expected.square().sum(), [through[1], slim.weight, slim.bias])
    torch.testing.assert_close(ours, expected)
    for ours, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, expected)


# --- names


def test_every_name_of_a_network_is_there_and_has_a_revision():
    for place in networks.NETWORKS.values():
        module, function = place.split(":")
        found = import_module(f"stn.experiments.networks.{module}")
        assert callable(getattr(found, function))
        assert found.REVISION >= 1
    assert all(isinstance(transform(), Transform) for transform in networks.TRANSFORMS.values())


@pytest.mark.parametrize(("name", "in_shape"), [("affine", (1, 42, 42)), ("affine3d", (1, 30, 30, 30))])
def test_convolutional_is_that_of_images_or_of_volumes(name, in_shape):
    localisation = networks.LOCALISATIONS["convolutional"](in_shape, networks.TRANSFORMS[name]())
    assert localisation(torch.rand(2, *in_shape)).shape == (2, networks.TRANSFORMS[name].num_params)


def test_no_layer_of_ours_divides_by_what_the_export_drops():
    for name, in_shape in (("affine", (1, 42, 42)), ("affine3d", (1, 30, 30, 30))):
        localisation = networks.LOCALISATIONS["convolutional"](in_shape, networks.TRANSFORMS[name]())
        pool = next(m for m in localisation.modules() if isinstance(m, torch.nn.AvgPool2d | torch.nn.AvgPool3d))
        assert pool.divisor_override is None
        u = torch.rand(2, *in_shape)
        divisor = 1 if name == "affine" else 4  # of the sum
        plain = (F.avg_pool2d if name == "affine" else F.avg_pool3d)(u, pool.kernel_size, divisor_override=divisor)
        assert torch.equal(pool(u), plain)
