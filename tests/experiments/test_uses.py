"""Other uses of the transformer: theta fed forward, in series, another output size, recurrent; and docs/uses.md."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from composing import compose
from jaxtyping import config
from ranges import DISTORTIONS
from torch import nn

from stn import Affine, Attention, Projective, SpatialTransformer, ThinPlateSpline, trace
from stn.experiments import build as by_name
from stn.experiments import draw
from stn.experiments.datasets.mnist import DistortedMnist
from stn.experiments.networks import uses
from stn.experiments.networks.mnist import build, fcn
from stn.experiments.networks.sizing import num_params
from stn.experiments.results import pages, records, tables
from stn.experiments.training.job import schedule_of
from stn.localisation import Regression, fully_connected

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/uses.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
TABLE = tables.load(ROOT / "conf/table/uses.yaml")
ROWS = list(TABLE.rows)
SMALL = {"in_shape": (1, 42, 42), "classes": 10, "budget": 90_000, "transform": Affine()}


def experiment(name, *overrides):
    """The network of an experiment and its schedule, as run.py composes them."""
    config, _ = compose(f"experiment={name}", "schedule=quick", "data/distortion=rts", *overrides)
    return by_name.network(config["model"], (1, 42, 42), 10), schedule_of(config)


@cache
def kept():
    return records.read_kept(ROOT / "results")


def localisation_of(network):
    """The regression layers of every localisation network, the input's first."""
    return [module for module in network.modules() if isinstance(module, Regression)]


# --- all of them


@pytest.mark.parametrize("name", ROWS)
def test_every_row_spends_the_budget_of_the_others(name):
    torch.manual_seed(0)
    assert 0.96 * 150_000 < num_params(experiment(name, "budget=150000")[0]) <= 150_000


@pytest.mark.parametrize("schedule", ["quick", "fast"])
def test_a_row_has_the_steps_of_its_classifier(schedule):
    steps = {name: experiment(name, f"schedule={schedule}")[1].steps for name in ROWS}
    fcn, cnn = steps["mnist_st_fcn_affine"], steps["mnist_st_cnn_affine"]
    assert fcn > cnn
    assert steps == {name: fcn if "_fcn_" in name else cnn for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_takes_two_steps_in_which_all_of_it_learns(name, random_digits):
    torch.manual_seed(0)
    network, schedule = experiment(name, "budget=90000")
    data, generator = DistortedMnist("nowhere", DISTORTIONS["rts"]), torch.Generator().manual_seed(0)
    before = {name: p.clone() for name, p in network.named_parameters()}
    (optimizer,) = schedule.optimizers(network)
    for _ in range(2):
        u, label = data.batch(8, generator)
        optimizer.zero_grad()
        F.cross_entropy(network(u), label).backward()
        optimizer.step()
    assert {name for name, p in network.named_parameters() if torch.equal(p, before[name])} == set()


@pytest.mark.parametrize("name", ROWS)
def test_the_localisation_networks_have_their_own_learning_rate(name):
    network, schedule = experiment(name, "schedule.localisation_lr=0.3")
    slow = {p for group in schedule.optimizers(network)[0].param_groups[1:] for p in group["params"]}
    assert {p for regression in localisation_of(network) for p in regression.parameters()} <= slow


# --- theta fed forward


def test_the_last_layer_reads_the_features_of_v_and_theta():
    torch.manual_seed(0)
    network, u = uses.theta_fed_forward(**SMALL), torch.rand(3, 1, 42, 42)
    nn.init.normal_(network.transformer.localisation[-1].weight, std=0.1)
    (warp,) = trace(network, u)
    features = network.features(F.avg_pool2d(warp.v, 2))
    of_features, of_theta = network.classifier.weight.split([features.shape[1], 6], dim=1)
    torch.testing.assert_close(network(u), features @ of_features.T + warp.theta @ of_theta.T + network.classifier.bias)


def test_theta_reaches_the_classifier_beside_v():
    torch.manual_seed(0)
    network = uses.theta_fed_forward(**SMALL)
    network.transformer.kernel = "nearest"  # through V no gradient comes back to theta
    network(torch.rand(3, 1, 42, 42))[:, 7].sum().backward()
    expected = 3 * network.classifier.weight[7, -6:]
    torch.testing.assert_close(network.transformer.localisation[-1].bias.grad, expected)


def test_another_image_s_theta_gives_other_scores_for_the_same_v():
    torch.manual_seed(0)
    network, u = uses.theta_fed_forward(**SMALL), torch.zeros(2, 1, 42, 42)  # black: V is the same whatever theta is
    said = network(u)
    network.transformer.localisation = nn.Sequential(
        nn.Flatten(), Regression(42 * 42, Affine(), (0.5, 0.0, 0.0, 0.0, 1.0, 0.0))
    )
    assert not torch.allclose(network(u), said)


# --- in series


def test_a_series_warps_the_input_and_then_feature_maps_of_it():
    torch.manual_seed(0)
    network, u = uses.series(**SMALL), torch.rand(3, 1, 42, 42)
    for regression in localisation_of(network):
        nn.init.normal_(regression.weight, std=0.02)
    first, second = trace(network, u)
    assert (first.name, second.name) == ("transformer_input", "transformer_maps")
    conv, last = network.first[0], network.rest[0]
    maps = F.conv2d(F.avg_pool2d(first.v, 2), conv.weight, conv.bias).relu()
    maps = F.max_pool2d(maps, 2, ceil_mode=True)
    torch.testing.assert_close(second.u, maps)
    assert second.v.shape == (3, conv.out_channels, 7, 7)
    assert not torch.allclose(second.v, second.u)
    expected = F.conv2d(second.v, last.weight, last.bias).relu().flatten(1)
    torch.testing.assert_close(network(u), expected @ network.classifier.weight.T + network.classifier.bias)


def test_what_a_transformer_does_to_feature_maps_can_be_drawn():
    u = torch.rand(16, 7, 7)
    picture = np.asarray(draw.tile(7 * u, 7))[:, :, 0]
    np.testing.assert_allclose(picture, 255 * u.mean(0) / u.mean(0).max(), atol=1)
    assert draw.tile(torch.zeros(16, 7, 7), 7).getextrema() == ((0, 0),) * 3


# --- another output size


def at_size(u, out_px, pool):
    """V of an untrained network, which is U at another size."""
    network = uses.resized(**SMALL, out_px=out_px, pool=pool)
    return network.pool(network.transformer(u)).detach()


def test_direct_sampling_aliases_fine_stripes_and_averaging_not():
    x = np.arange(42)
    u = torch.from_numpy(0.5 + 0.5 * np.cos(2 * np.pi * 0.3 * x)).float().expand(1, 1, 42, 42)
    # 0.3 cycles a pixel of U are 0.9 a pixel of V, which nothing tells from 0.1: the middle one of every three pixels
    alias = np.cos(2 * np.pi * (0.3 - 0.1 * np.arange(14)))
    direct, averaged = at_size(u, 14, 1)[0, 0], at_size(u, 14, 3)[0, 0]
    np.testing.assert_allclose(direct, np.tile(0.5 + 0.5 * alias, (14, 1)), atol=1e-4)
    # the mean of three pixels of a wave is the wave times (1 + 2 cos(2 pi f)) / 3
    left = (1 + 2 * np.cos(2 * np.pi * 0.3)) / 3
    assert abs(left) < 0.13
    np.testing.assert_allclose(averaged, np.tile(0.5 + 0.5 * left * alias, (14, 1)), atol=1e-4)


def test_at_half_the_size_direct_sampling_is_the_average():
    u = torch.rand(2, 1, 42, 42)
    torch.testing.assert_close(at_size(u, 21, 1), F.avg_pool2d(u, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(at_size(u, 21, 2), F.avg_pool2d(u, 2), atol=1e-5, rtol=0)


def test_42_points_averaged_to_21_px_are_the_st_fcn_of_table_1():
    torch.manual_seed(0)
    resized, usual = (
        uses.resized(**SMALL, out_px=21, pool=2),
        build((1, 42, 42), 10, 90_000, fcn, fully_connected, Affine()),
    )
    usual.load_state_dict(resized.state_dict())
    u = torch.rand(2, 1, 42, 42)
    assert torch.equal(resized(u), usual(u))


@pytest.mark.parametrize("size", [(0, 1), (21, 0)])
def test_a_size_below_1_is_refused(size):
    with pytest.raises(ValueError, match=rf"^model\.out_px={size[0]} and model\.pool={size[1]} have to be 1 or more$"):
        uses.resized(**SMALL, out_px=size[0], pool=size[1])


# --- recurrent


def matrices(theta):
    return np.concatenate([theta.numpy().reshape(-1, 2, 3), np.tile([[[0, 0, 1]]], (len(theta), 1, 1))], axis=1)


def test_composed_thetas_are_the_product_of_their_matrices():
    outer, inner = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(
        matrices(Affine().compose(outer, inner)), matrices(outer) @ matrices(inner), rtol=1e-12, atol=1e-12
    )


def test_thetas_are_composed_in_float32_under_autocast():
    outer, inner = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        composed = Affine().compose(outer, inner)
    assert torch.equal(composed, Affine().compose(outer, inner))


class Scripted(nn.Module):
    """A localisation network that says one theta after the other, and keeps what it was shown."""

    def __init__(self, *thetas):
        super().__init__()
        self.thetas, self.seen = [torch.tensor([theta], dtype=torch.float64) for theta in thetas], []

    def forward(self, u):
        self.seen.append(u)
        return self.thetas[len(self.seen) - 1].expand(len(u), 6)


FIRST, SECOND, THIRD = (0.8, 0.3, 0.1, -0.2, 0.7, -0.15), (1.1, -0.2, -0.2, 0.3, 0.9, 0.1), (0.9, 0, 0.2, 0.1, 1.2, 0)


def by_scipy(u, matrix):
    """u (H, W) sampled at matrix (x, y, 1) of every pixel centre (x, y) in [-1, 1]."""
    h, w = u.shape
    pixels = np.array([[w / 2, 0, (w - 1) / 2], [0, h / 2, (h - 1) / 2], [0, 0, 1]])  # from (x, y) to column and row
    inner = pixels @ matrix @ np.linalg.inv(pixels)
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])  # scipy's order is row, column
    return scipy.ndimage.affine_transform(u, swap @ inner @ swap, order=1, mode="grid-constant", cval=0)


def test_every_look_is_at_u_through_all_of_the_maps_so_far():
    u = torch.rand(1, 1, 12, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    script = Scripted(FIRST, SECOND, THIRD)
    v = uses.Recurrent(SpatialTransformer(script, Affine()), 3)(u)
    a, b, c = (matrices(theta)[0] for theta in script.thetas)
    seen = [u[0, 0].numpy(), by_scipy(u[0, 0].numpy(), a), by_scipy(u[0, 0].numpy(), a @ b)]
    for got, expected in zip(script.seen, seen, strict=True):
        np.testing.assert_allclose(got[0, 0], expected, atol=1e-12)
    np.testing.assert_allclose(v[0, 0], by_scipy(u[0, 0].numpy(), a @ b @ c), atol=1e-12)


def test_what_one_look_moves_out_the_next_can_bring_back_sharp():
    there, back = (1.0, 0, 0.71, 0, 1, 0), (1.0, 0, -0.71, 0, 1, 0)
    u = torch.rand(1, 1, 12, 15, dtype=torch.float64)
    composed = uses.Recurrent(SpatialTransformer(Scripted(there, back), Affine()), 2)(u)
    torch.testing.assert_close(composed, u)
    st = SpatialTransformer(Scripted(there, back), Affine())
    resampled = st(st(u))  # the other reading
    assert (resampled[..., :5] == 0).all()
    assert not torch.allclose(resampled, u)


def test_a_recurrent_transformer_that_looks_once_is_the_single_one():
    torch.manual_seed(0)
    once = uses.recurrent(**SMALL, times=1)
    single, u = build((1, 42, 42), 10, 90_000, fcn, fully_connected, Affine()), torch.rand(2, 1, 42, 42)
    nn.init.normal_(once.transformer.transformer.localisation[-1].weight, std=0.1)
    single.load_state_dict(
        {name.replace("transformer.transformer", "transformer"): p for name, p in once.state_dict().items()}
    )
    assert torch.equal(once(u), single(u))


def test_looking_again_costs_no_parameters_and_trace_shows_every_look():
    for times in (1, 2, 3):
        network = uses.recurrent(**SMALL, times=times)
        assert num_params(network) == num_params(uses.recurrent(**SMALL, times=1))
        warps = trace(network, torch.rand(2, 1, 42, 42))
        own = "transformer.transformer"
        assert [warp.name for warp in warps] == ([own] if times == 1 else [f"{own}.{i + 1}" for i in range(times)])


@pytest.mark.parametrize("transform", [Affine(), Attention(), Projective()])
def test_every_transform_that_composes_can_recur(transform):
    network = uses.recurrent((1, 28, 28), 10, None, transform, times=2)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("transform", "times", "message"),
    [
        (Affine(), 0, r"^model\.times=0 has to be 1 or more$"),
        (ThinPlateSpline(), 2, r"^a recurrent [^\n]*, but ThinPlateSpline has no compose: choose [^\n]*$"),
    ],
)
def test_a_recurrence_that_cannot_be_is_refused(transform, times, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in production
    with pytest.raises(ValueError, match=message):
        uses.Recurrent(SpatialTransformer(nn.Identity(), transform), times)


# --- the page


@pytest.mark.parametrize("code", CODE, ids=["theta", "series", "size", "recurrent"])
def test_the_code_of_the_page_does_what_it_says(code):
    said: dict = {}
    exec(code, said)
    if "logits" in said:
        assert said["logits"].shape == (8, 10)
    if "shapes" in said:
        assert said["shapes"] == ((8, 1, 42, 42), (8, 16, 7, 7))
    for first, second, text in re.findall(r"^(\w+), (\w+) = .*  # (below 1e-5 and 0\.58|0\.34 and 0\.04)", code, re.M):
        a, b = text.split(" and ")
        assert said[first] < 1e-5 if a == "below 1e-5" else f"{said[first]:.2f}" == a
        assert f"{said[second]:.2f}" == b


def test_the_page_s_table_is_that_of_the_records():
    assert pages.into_page(PAGE, TABLE, kept()) == PAGE
    assert "| % error | RTS |" in PAGE
    assert all(cell.values for cell in tables.cells(TABLE, kept(), "quick", None))
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE)
    assert pictures
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures)


def test_the_page_names_every_experiment():
    assert {name for name in ROWS if f"`{name}`" not in PAGE} <= {"mnist_st_fcn_affine", "mnist_st_cnn_affine"}
