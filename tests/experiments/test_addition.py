"""MNIST addition: its pairs, the networks with parallel transformers, Table 4, and which transformer carries what."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composing import compose
from ranges import DISTORTIONS

from stn import Affine, Projective, Regression, SpatialTransformer, ThinPlateSpline, regular_grid, trace
from stn.experiments import build as by_name
from stn.experiments.datasets.addition import MnistAddition
from stn.experiments.networks.mnist import StClassifier, build, cnn, fcn
from stn.experiments.networks.sizing import num_params
from stn.experiments.results import tables
from stn.experiments.specialisation import carried, measure, residual_deg, rotation_deg, shown_pose
from stn.localisation import convolutional, fully_connected

ROOT = Path(__file__).parents[2]
FROZEN = "30a32cf10399317071655e3f487b44ecd7c8def57c569c79fa549e7938065836"
FROZEN_RTS = "4b5c24327380e699261f2bf019ca24118c9956a00142447dc5e6f5329e21229f"  # Table 1's, of test_mnist.py
TABLE4 = {  # the paper's; None: ours
    "FCN": 47.7, "CNN": 14.7, "ST-FCN Aff": 22.6, "ST-FCN Proj": 18.5, "ST-FCN TPS": 19.1,
    "2xST-FCN Aff": 9.0, "2xST-FCN Proj": 5.9, "2xST-FCN TPS": 5.8,
    "ST-CNN Aff": None, "ST-CNN TPS": None, "2xST-CNN Aff": None, "2xST-CNN TPS": None,
}  # fmt: skip
TABLE = tables.load(ROOT / "conf/table/table4.yaml")


@pytest.fixture
def pairs(monkeypatch):
    """60 training and 50 test digits, each a plain square of a grey of its own (0-59 + 1, 150-199); labels i % 10."""

    def load(root, split):
        first, n = (1, 60) if split == "train" else (150, 50)
        grey = torch.arange(first, first + n, dtype=torch.uint8)
        return grey[:, None, None].expand(n, 28, 28).contiguous(), torch.arange(n) % 10

    monkeypatch.setattr("stn.experiments.datasets.mnist.load_digits", load)
    return MnistAddition("nowhere", DISTORTIONS["rts"])


def greys(images):
    """The grey of every channel's square: its largest value."""
    return images.flatten(2).amax(2).round().long()


def test_the_frozen_test_set_is_that_of_the_records():
    data = MnistAddition(ROOT / "data", DISTORTIONS["rts"])
    images, labels = data.test.tensors
    assert images.shape == (10_000, 2, 42, 42)
    assert data.checksums()["test"] == FROZEN
    assert hashlib.sha256(images[:, 0].contiguous().numpy().tobytes()).hexdigest() == FROZEN_RTS
    assert torch.bincount(labels, minlength=19).argmax() == 9
    assert (labels.min(), labels.max()) == (0, 18)


def test_every_test_digit_is_shown_once_in_each_channel(pairs):
    images, labels = pairs.test.tensors
    shown = greys(images.float())
    assert shown.sort(0).values.equal(torch.arange(150, 200)[:, None].expand(50, 2))
    assert (shown[:, 0] != shown[:, 1]).float().mean() > 0.9
    assert labels.equal(((shown - 150) % 10).sum(1))


def test_a_training_pair_is_two_digits_drawn_apart_and_their_sum(pairs):
    images, labels = pairs.batch(10_000, torch.Generator().manual_seed(0))
    shown = greys(images * 255) - 1
    assert shown.min() == 0
    assert shown.max() == 59
    assert labels.equal((shown % 10).sum(1))
    assert abs(np.corrcoef(shown.T.numpy())[0, 1]) < 0.05
    assert ((torch.bincount(shown[:, 1], minlength=60) - 10_000 / 60).abs() < 5 * (10_000 / 60) ** 0.5).all()


def test_the_two_digits_of_a_pair_are_distorted_independently(pairs):
    images, _ = pairs.batch(3000, torch.Generator().manual_seed(0))
    ink = images.gt(0).float()
    area = ink.sum((2, 3))
    assert abs(np.corrcoef(area.T.numpy())[0, 1]) < 0.08  # scale
    for axis in (2, 3):
        place = (ink.sum(5 - axis) * torch.arange(42)).sum(2) / area
        assert place.std() > 1
        assert abs(np.corrcoef(place.T.numpy())[0, 1]) < 0.08


def test_batches_are_fresh_and_follow_from_the_generator(pairs):
    generator = torch.Generator().manual_seed(7)
    first, second = pairs.batch(16, generator), pairs.batch(16, generator)
    again = pairs.batch(16, torch.Generator().manual_seed(7))
    assert not first[0].equal(second[0])
    assert first[0].equal(again[0])
    assert first[1].equal(again[1])
    assert first[0].shape[1:] == pairs.in_shape == (2, 42, 42)


def test_the_known_poses_are_those_of_the_test_images(pairs):
    images = pairs.test.tensors[0].float()
    for c, params in enumerate(pairs.test_params()):
        ink = images[:, c] / images[:, c].amax((1, 2), keepdim=True)
        side, shift = (params["scale"] * 28).float(), params["shift_px"].float()
        whole = shift.abs().amax(1) + side / 2**0.5 < 21  # no corner sticks out of the canvas
        assert whole.sum() >= 3
        mass = ink.sum((1, 2))
        torch.testing.assert_close(mass[whole], side[whole] ** 2, rtol=0.03, atol=0)
        x = (ink.sum(1) * (torch.arange(42) - 20.5)).sum(1) / mass
        y = (ink.sum(2) * (torch.arange(42) - 20.5)).sum(1) / mass
        torch.testing.assert_close(torch.stack([x, y], 1)[whole], shift[whole], atol=0.1, rtol=0)
        turned = torch.deg2rad(params["angle_deg"].float()).abs()
        extent = (ink.amax(1) > 0.5).sum(1) - side * (turned.cos() + turned.sin())
        assert extent[whole].abs().max() < 2.5


# --- networks

MODELS = {
    "FCN": ({"classifier": fcn}, 398_741),
    "CNN": ({"classifier": cnn}, 399_031),
    "ST-FCN": ({"classifier": fcn, "localisation": fully_connected, "transform": Affine()}, 399_307),
    "2xST-FCN": (
        {"classifier": fcn, "localisation": fully_connected, "transform": Affine(), "transformers": 2}, 399_245,
    ),
    "ST-CNN": ({"classifier": cnn, "localisation": convolutional, "transform": Affine()}, 399_347),
    "2xST-CNN": (
        {"classifier": cnn, "localisation": convolutional, "transform": Affine(), "transformers": 2}, 391_825,
    ),
}  # fmt: skip


def make(name, budget=400_000):
    torch.manual_seed(0)
    return build((2, 42, 42), 19, budget, **MODELS[name][0])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_table_4_spends_the_same_budget(name):
    assert num_params(make(name)) == MODELS[name][1]
    assert 0.97 * 400_000 < MODELS[name][1] <= 400_000


def test_both_transformers_warp_both_channels_for_the_classifier():
    network, u = make("2xST-FCN"), torch.rand(3, 2, 42, 42)
    for k, transformer in enumerate(network.transformer):
        transformer.localisation[-1].bias.data[2] = 2 * (3 + k) / 42  # t_x: what lies 3 and 4 px to the right
    seen = []
    network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(u)
    shifted = [F.pad(u[..., 3 + k :], (0, 3 + k)) for k in range(2)]
    torch.testing.assert_close(seen[0], F.avg_pool2d(torch.cat(shifted, 1), 2), atol=1e-4, rtol=0)
    assert [warp.name for warp in trace(network, u)] == ["transformer.0", "transformer.1"]


def test_one_transformer_has_no_list_of_them_in_its_names():
    torch.manual_seed(3)
    network = build((1, 42, 42), 10, 150_000, fcn, fully_connected, Affine())
    found, width = network.state_dict(), network.classifier[1].out_features
    torch.manual_seed(3)
    st = SpatialTransformer(fully_connected((1, 42, 42), Affine()), Affine())
    expected = StClassifier(st, 2, fcn((1, 21, 21), width, 10)).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["2xST-FCN", "2xST-CNN"])
def test_two_transformers_start_alike_part_and_all_of_both_learns(name, pairs):
    network = make(name)
    optimiser, generator = torch.optim.SGD(network.parameters(), lr=0.1), torch.Generator().manual_seed(0)
    u, label = pairs.batch(16, generator)
    one, two = trace(network, u)
    assert torch.equal(one.theta, two.theta)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(network(u), label).backward()
        without = {parameter for parameter, p in network.named_parameters() if not p.grad.any()}
        optimiser.step()
    assert without == set()
    one, two = trace(network, u)
    assert (one.theta - two.theta).abs().max() > 0.01 * (one.theta - torch.tensor(Affine.identity)).abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_another_number_of_channels_is_refused_in_one_line(name, channels):
    line = (
        f"the network was built for images of 2 x 42 x 42 (channels, height, width), got {channels} x 42 x 42: "
        "resize the images, or build the network for this shape"
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make(name)(torch.rand(3, channels, 42, 42))
    assert str(error.value) == line


def test_no_transformer_at_all_is_refused():
    with pytest.raises(ValueError, match=r"^model\.transformers=0 has to be 1 or more$"):
        build((2, 42, 42), 19, 400_000, fcn, fully_connected, Affine(), transformers=0)


# --- Table 4


def test_table_4_has_the_figures_of_the_paper():
    assert {row: TABLE.paper.get(name, {}).get("rts") for name, row in TABLE.rows.items()} == TABLE4


@pytest.mark.parametrize(("experiment", "row"), TABLE.rows.items())
def test_an_experiment_builds_its_row_within_a_budget(experiment, row):
    config, _ = compose(f"experiment={experiment}", "budget=400000")
    network = by_name.network(config["model"], (2, 42, 42), 19)
    model = row.split()[0]
    assert num_params(network) == MODELS[model][1] or row.split()[-1] in ("Proj", "TPS")
    assert 0.97 * 400_000 < num_params(network) <= 400_000 == config["budget"]
    transforms = [type(m.transform).__name__ for m in network.modules() if isinstance(m, SpatialTransformer)]
    names = {"Aff": "Affine", "Proj": "Projective", "TPS": "ThinPlateSpline"}
    number = 0 if "ST" not in row else 2 if row.startswith("2x") else 1
    assert transforms == number * [names.get(row.split()[-1])]


# --- which transformer carries which channel


def affine(matrix, shift):
    return torch.cat([matrix, shift[..., None]], -1)


def similarity(angle_deg, scale, shift):
    """The maps p -> scale R p + shift, (n, 2, 3)."""
    a = torch.deg2rad(angle_deg)
    r = torch.stack([torch.stack([a.cos(), -a.sin()], -1), torch.stack([a.sin(), a.cos()], -1)], -2)
    return affine(scale[:, None, None] * r, shift)


def inverse(m):
    whole = torch.cat([m, torch.tensor([[[0.0, 0, 1]]]).to(m).expand(len(m), 1, 3)], 1)
    return torch.linalg.inv(whole)[:, :2]


def poses_on_canvas(n, seed):
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(n, 4, generator=g, dtype=torch.float64)
    return similarity(90 * u[:, 0] - 45, 0.5 + 0.3 * u[:, 1], 0.4 * u[:, 2:] - 0.2)


def test_an_affine_transformer_s_pose_is_the_composition_of_maps():
    digit, st = poses_on_canvas(50, 0), poses_on_canvas(50, 1)
    source = Affine()(st.flatten(1), regular_grid((21, 30), torch.float64))
    found = shown_pose(source, inverse(digit).flatten(1), (21, 30))
    one = torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64).expand(50, 1, 3)
    whole = torch.linalg.inv(torch.cat([st, one], 1)) @ torch.cat([digit, one], 1)
    torch.testing.assert_close(found, whole[:, :2])


@pytest.mark.parametrize("transform", [Projective(), ThinPlateSpline()], ids=["projective", "tps"])
def test_another_transform_s_pose_is_its_best_affine_fit(transform):
    generator = torch.Generator().manual_seed(0)
    theta = torch.tensor(transform.identity, dtype=torch.float64).repeat(20, 1)
    bend = torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    to_digit = inverse(poses_on_canvas(20, 2))
    target = regular_grid((42, 42), torch.float64)
    for size, tolerance in ((0.0, 1e-4), (0.03, 0.15)):
        source = transform.double()(theta + size * bend, target)
        found = shown_pose(source, to_digit.flatten(1), (42, 42))
        fitted = Affine()(inverse(found).flatten(1), target)
        digit = source @ to_digit[:, :, :2].mT + to_digit[:, None, :, 2]
        near = digit.square().sum(-1) < 1
        assert (fitted - digit).norm(dim=-1)[near].max() < tolerance


def test_angles_turn_clockwise_and_wrap_at_180_degrees():
    n = torch.tensor([10.0, -30.0, 170.0], dtype=torch.float64)
    f = similarity(n, torch.full((3,), 0.7, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(rotation_deg(f), n)
    found = residual_deg(torch.tensor([170.0, -170.0, 180.0], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([-10.0, 10.0, 0.0], dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_transformer_that_carries_a_channel_is_told_from_an_idle():
    n, size = 4000, (10, 10)
    digits = [poses_on_canvas(n, 0), poses_on_canvas(n, 1)]
    target = regular_grid(size, torch.float64)
    upright = inverse(similarity(torch.full((n,), 20.0), torch.full((n,), 0.9), torch.zeros(n, 2)).double())
    one = torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64).expand(n, 1, 3)
    onto = digits[1] @ torch.cat([upright, one], 1)  # output -> upright digit -> the place of channel 2's digit
    sources = [Affine()(onto.flatten(1), target), target.expand(n, -1, 2)]
    poses = torch.stack([torch.stack([shown_pose(s, inverse(d).flatten(1), size) for d in digits]) for s in sources])
    rows = {(row["transformer"], row["channel"]): row for row in carried(poses, 42)}
    raw = 90 / math.sqrt(12)
    assert rows[1, 2]["rotation_std_deg"] < 1e-3
    assert rows[1, 2]["residual_px"] < 1e-3
    assert rows[1, 2]["share_rotation"] == rows[1, 2]["share_pose"] == 1
    assert rows[1, 1]["share_rotation"] == rows[1, 1]["share_pose"] == 0
    assert rows[1, 1]["rotation_std_deg"] == pytest.approx(math.sqrt(2) * raw, rel=0.05)  # of a difference of two
    for c in (1, 2):
        assert rows[2, c]["rotation_std_deg"] == pytest.approx(raw, rel=0.05)
        assert rows[2, c]["share_rotation"] == pytest.approx(0.5, abs=0.04)


def test_untrained_transformers_prefer_no_channel(pairs):
    said = measure(make("2xST-FCN", 300_000).eval(), pairs)
    assert said["grids_apart_px"] == 0
    assert [(row["transformer"], row["channel"]) for row in said["carried"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for row in said["carried"]:
        assert row["rotation_std_deg"] == pytest.approx(said["raw_rotation_std_deg"][row["channel"] - 1], rel=0.05)
        assert row["share_rotation"] == pytest.approx(0.5, abs=0.2)


def test_a_window_that_has_left_the_image_has_no_pose(pairs):
    network = make("2xST-FCN", 300_000).eval()
    last = [module for module in network.modules() if isinstance(module, Regression)][-1]
    with torch.no_grad():
        last.bias.copy_(-last.identity + 1e9 * (last.identity == 0))  # every point far away, at one place
    with pytest.raises(ValueError, match=r"^the window of transformer 2 has collapsed, so its digits have no pose$"):
        measure(network, pairs)


def test_what_has_no_pose_cannot_be_measured(pairs):
    pairs.distortion = DISTORTIONS["e"]
    with pytest.raises(ValueError, match=r"^Elastic has no pose to compare: choose data/distortion=r or rts$"):
        measure(make("2xST-FCN", 300_000), pairs)
