"""3D MNIST: the volumes against SciPy, the frozen test set, the network, and what does not fit into memory."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Generator

from stn import Affine3d, regular_grid
from stn.experiments import draw
from stn.experiments.datasets import voxel
from stn.experiments.datasets.voxel import Pose, VoxelMnist, render, rotation
from stn.experiments.figures.voxel import evenly
from stn.experiments.networks.sizing import num_params
from stn.experiments.networks.voxel import Projection, build, convolutional
from stn.experiments.training.classification import Classification
from stn.experiments.training.engine import Batches, Training
from stn.experiments.training.schedule import Schedule
from stn.transformer import trace

SIDE = 60
SHAPE = (1, SIDE, SIDE, SIDE)


@pytest.fixture
def small(random_digits, monkeypatch):
    """Noise in MNIST's place, in volumes of 24^3."""
    images, labels = voxel_digits()
    monkeypatch.setattr("stn.experiments.datasets.mnist.load_digits", lambda root, split: (images, labels))
    return VoxelMnist("nowhere", 24, 45.0, 8.0)


def voxel_digits(n=23):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
    return images, torch.from_numpy(rng.integers(0, 10, n))


def blurred(n):
    """Digits without detail, which bilinear reading keeps."""
    return F.avg_pool2d(voxel_digits(n)[0].float()[:, None], 5, 1, 2)[:, 0].byte()


def network(**changes):
    torch.manual_seed(0)
    return build(SHAPE, 10, 150_000, convolutional, Affine3d(), **{"out_px": 30} | changes)


# --- poses and volumes


def test_a_pose_turns_about_x_then_y_then_z_as_scipy_does():
    angles = torch.tensor([[10.0, -40.0, 70.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = Rotation.from_euler("xyz", angles.numpy(), degrees=True).as_matrix()
    np.testing.assert_allclose(rotation(angles).numpy(), expected, atol=1e-12)


def test_poses_fill_their_range_and_keep_the_turned_slab_inside():
    params = Pose(45.0, 8.0).draw(20_000, Generator().manual_seed(0), torch.float64)
    angle, shift = params["angle_deg"], params["shift_px"]
    assert angle.abs().max() <= 45
    assert angle.mean(0).abs().max() < 1
    assert angle.std(0) == pytest.approx([45 / 3**0.5] * 3, rel=0.02)
    corners = torch.tensor([[x, y, z] for x in (-14, 14) for y in (-14, 14) for z in (-4, 4)], dtype=torch.float64)
    placed = torch.einsum("bij,kj->bki", rotation(angle), corners) + shift[:, None]
    assert 29.9 < placed.abs().max() <= 30 + 1e-9  # up to the faces, not through them


@pytest.mark.parametrize("size_px", [60, 40])
def test_a_volume_is_the_extruded_digit_as_scipy_reads_it(size_px):
    digits = blurred(3)
    params = Pose(45.0, 8.0).draw(3, Generator().manual_seed(1), torch.float64)
    volumes = render(digits, params, 8.0, size_px)
    centres_px = (np.arange(size_px) + 0.5) * 60 / size_px - 30
    z, y, x = np.meshgrid(centres_px, centres_px, centres_px, indexing="ij")
    for digit, angle, shift, volume in zip(digits, params["angle_deg"], params["shift_px"], volumes, strict=True):
        turn = Rotation.from_euler("xyz", angle.numpy(), degrees=True)
        local = turn.inv().apply(np.stack([x, y, z], -1).reshape(-1, 3) - shift.numpy())
        padded = np.pad(digit.numpy() / 255.0, 2)
        ink = map_coordinates(padded, [local[:, 1] + 15.5, local[:, 0] + 15.5], order=1)  # pixel i's centre: i - 13.5
        inside = np.clip((4 - np.abs(local[:, 2])) * size_px / 60 + 0.5, 0, 1)
        np.testing.assert_allclose(volume.numpy().ravel(), ink * inside, atol=1e-9)


def test_an_upright_volume_shows_its_digit_eight_times_in_depth():
    digits, _ = voxel_digits(1)
    upright = {"angle_deg": torch.zeros(1, 3), "shift_px": torch.tensor([[3.0, -5.0, 7.0]])}
    (volume,) = render(digits, upright, 8.0, SIDE)[0]
    expected = torch.zeros(60, 60, 60)
    expected[33:41, 11:39, 19:47] = digits[0] / 255
    torch.testing.assert_close(volume, expected, atol=1e-5, rtol=0)


def test_training_volumes_are_drawn_and_test_images_frozen(small):
    assert isinstance(small, Batches)
    assert small.in_shape == (1, 24, 24, 24)
    one, two = (small.batch(5, Generator().manual_seed(7)) for _ in range(2))
    assert one[0].shape == (5, 1, 24, 24, 24)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(small.batch(5, Generator().manual_seed(8))[0], one[0])
    images, labels = (torch.cat(part) for part in zip(*small.test_batches(), strict=True))
    assert torch.equal(images, small.test_images(torch.arange(23)))
    assert torch.equal(labels, small.test_labels)
    assert 0 <= images.min() <= images.max() <= 1


def test_the_memory_of_a_test_batch_is_bounded_at_every_side(small, monkeypatch):
    monkeypatch.setattr(voxel, "TEST_VOXELS", 5 * 24**3)
    assert [len(u) for u, _ in small.test_batches()] == [5, 5, 5, 5, 3]
    monkeypatch.setattr(voxel, "TEST_VOXELS", 1)
    assert {len(u) for u, _ in small.test_batches()} == {1}


def test_the_test_checksum_sees_the_digits_and_their_poses(small):
    before = small.checksums()["test"]
    small.test_params["shift_px"][0, 0] += 1e-6
    moved = small.checksums()["test"]
    small.test_digits = small.test_digits.clone()
    small.test_digits[0, 0, 0] ^= 1
    assert len({before, moved, small.checksums()["test"]}) == 3


# --- the controls


def test_upright_images_are_the_digit_through_a_transformer_that_undoes_the_pose(random_digits):
    volumes, seen = (VoxelMnist("nowhere", SIDE, 45.0, 28, upright_px=side) for side in (None, 30))
    assert seen.in_shape == (1, 30, 30, 30)
    index = torch.arange(3)
    params = {key: value[index].float() for key, value in volumes.test_params.items()}
    matrix = torch.cat([rotation(params["angle_deg"]) / 2, params["shift_px"][:, :, None] / 30], dim=2)
    expected = network(out_px=30).transformer.warp(volumes.test_images(index), matrix.flatten(1))
    torch.testing.assert_close(seen.test_images(index), expected)
    u, _ = seen.batch(2, Generator().manual_seed(0))
    assert u.shape == (2, 1, 30, 30, 30)


def test_an_upright_digit_lies_in_the_middle_as_deep_as_it_is_thick():
    digits = blurred(2)
    params = Pose(45.0, 16.0).draw(2, Generator().manual_seed(3))
    seen = voxel.upright(render(digits, params, 16.0, SIDE), params, 30).sum(2)[:, 0] / 16
    expected = F.pad(digits / 255, (1, 1, 1, 1))
    assert torch.corrcoef(torch.stack([seen.flatten(), expected.flatten()]))[0, 1] > 0.97
    assert seen.mean() == pytest.approx(expected.mean().item(), rel=0.02)


def test_validation_volumes_are_of_training_digits(random_digits, monkeypatch):
    monkeypatch.setattr("stn.experiments.datasets.mnist.VALID", 50)
    data = VoxelMnist("nowhere", 24, 45.0, 28, test_split="valid")
    assert (len(data.digits), len(data.test_digits), len(data.test_params["shift_px"])) == (150, 50, 50)
    with pytest.raises(ValueError, match=r"^unknown data\.test_split='dev'"):
        VoxelMnist("nowhere", 24, 45.0, 28, test_split="dev")


def test_the_3d_cnn_reads_the_volume_with_the_same_budget():
    net = build(SHAPE, 10, 150_000, projected=False)
    assert 0.96 * 150_000 < num_params(net) <= 150_000
    u = torch.rand(2, *SHAPE)
    deeper = u.roll(20, 2)  # the same projection
    assert (net(u) - net(deeper)).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"^model.projected=false is a 3D CNN"):
        build(SHAPE, 10, 150_000, convolutional, Affine3d(), projected=False)


# --- memory


def test_a_batch_that_does_not_fit_is_refused_before_it_is_drawn(small, monkeypatch):
    monkeypatch.setattr(voxel, "free_bytes", lambda device: 10**6)
    monkeypatch.setattr(voxel, "render", lambda *args: pytest.fail("rendered"))
    with pytest.raises(
        ValueError, match=r"^50 volumes of 24\^3 voxels need about 0.0 GB[^\n]*schedule.batch_size=50 or"
    ):
        small.batch(50, Generator())


def test_a_volume_that_does_not_fit_is_refused(small):
    with pytest.raises(
        ValueError, match=r"^one volume of 60000\^3 voxels needs about [^\n]* lower data.size_px=60000$"
    ):
        VoxelMnist("nowhere", 60_000, 45.0, 8.0)


@pytest.mark.parametrize("size_px", [23, 0, -3])
def test_a_side_that_is_no_number_of_voxels_is_refused(size_px):
    with pytest.raises(ValueError, match=f"^data.size_px={size_px} has to be a whole number"):
        VoxelMnist("nowhere", size_px, 45.0, 8.0)


def test_free_memory_is_what_the_system_says_or_unknown():
    free = voxel.free_bytes(torch.device("cpu"))
    assert free is None or free > 10**6


# --- the network


def test_at_the_identity_half_the_side_is_the_mean_of_8_voxels():
    u = torch.rand(2, *SHAPE)
    (warp,) = trace(network(), u)
    torch.testing.assert_close(warp.v, F.avg_pool3d(u, 2), atol=1e-5, rtol=0)


def test_the_classifier_sees_the_projection_of_v_alone():
    st = network()
    u = torch.rand(2, *SHAPE)
    (warp,) = trace(st, u)
    torch.testing.assert_close(st(u), st.classifier(warp.v.sum(2) / 28))
    torch.testing.assert_close(Projection()(u)[0, 0, 5, 7], u[0, 0, :, 5, 7].sum() / 28)


def test_a_theta_that_undoes_the_pose_projects_to_the_digit():
    digits = blurred(4)
    params = Pose(45.0, 8.0).draw(4, Generator().manual_seed(2))
    u = render(digits, params, 8.0, SIDE)
    matrix = torch.cat([rotation(params["angle_deg"]) * 28 / 60, params["shift_px"][:, :, None] / 30], dim=2)
    st = network(out_px=28)
    seen = st.projection(st.transformer.warp(u, matrix.flatten(1)))[:, 0]
    assert torch.corrcoef(torch.stack([seen.flatten(), (digits / 255).flatten()]))[0, 1] > 0.97


@pytest.mark.parametrize("with_transformer", [True, False])
def test_both_models_use_nearly_all_of_the_same_budget(with_transformer):
    parts = (convolutional, Affine3d(), 30) if with_transformer else ()
    assert 0.96 * 150_000 < num_params(build(SHAPE, 10, 150_000, *parts)) <= 150_000


def test_every_parameter_learns_and_the_volume_asks_no_gradient(small):
    torch.manual_seed(0)
    loc = partial(convolutional, channels=4, downsample=1)
    st = build((1, 24, 24, 24), 10, 40_000, loc, Affine3d(), 24)
    optimizer = torch.optim.SGD(st.parameters(), 0.1)
    generator = Generator().manual_seed(0)
    for _ in range(2):
        u, label = small.batch(4, generator)
        assert not u.requires_grad
        optimizer.zero_grad()
        F.cross_entropy(st(u), label).backward()
        optimizer.step()
    assert [name for name, p in st.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_volume_too_small_for_the_localisation_is_refused():
    with pytest.raises(ValueError, match=r"^data.size_px=24 is too small [^\n]* choose 25 or more[^\n]*$"):
        convolutional((1, 24, 24, 24), Affine3d(), downsample=25)
    convolutional((1, 24, 24, 24), Affine3d(), downsample=24)


def test_a_transformer_without_a_transform_is_refused():
    with pytest.raises(ValueError, match=r"^model\.transform is missing: a localisation network needs one"):
        build(SHAPE, 10, 150_000, convolutional)


def test_the_engine_takes_a_network_with_convolutions_of_volumes(small):
    schedule = Schedule(1, 2, 1, {"_target_": "torch.optim.SGD", "lr": 0.1})
    st = network()
    Training(st, small, Classification(), schedule, 0, "fp32")
    first = st.classifier[0][3]
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert st.transformer.localisation[0][1].weight.is_contiguous()


# --- pictures


def test_a_volume_is_drawn_as_a_lit_solid_in_its_box():
    volume = torch.zeros(1, 20, 20, 20)
    empty = np.asarray(draw.volume_tile(volume, 40))
    volume[0, 6:14, 6:14, 6:14] = 1
    solid = np.asarray(draw.volume_tile(volume, 40))
    assert set(map(tuple, empty.reshape(-1, 3))) == {(0, 0, 0), draw.BOX_COLOUR}  # nothing but the box
    assert (solid[20, 20] > 60).all()
    assert (solid[2, 2] == 0).all()  # beside the box
    window = torch.tensor([[x, y, z] for z in (-0.5, 0.5) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
    assert draw.GRID_COLOUR in set(map(tuple, np.asarray(draw.volume_tile(volume, 40, window)).reshape(-1, 3)))


def test_figure_5_has_volume_sample_and_projection_in_a_column(small):
    u = small.test_images(torch.arange(2))
    v = u[:, :, 8:16, 8:16, 8:16]
    source = (regular_grid((8, 8, 8)) / 3).expand(2, -1, -1)
    picture = draw.volume_warps(u, source, v, side_px=32)
    assert picture.size == (2 * 32 + draw.GAP_PX, 3 * 32 + 2 * draw.GAP_PX)
    flat = v[0].sum(1)
    expected = draw.tile(flat / flat.max(), 32)
    assert np.array_equal(np.asarray(picture.crop((0, 72, 32, 104))), np.asarray(expected))


def test_figure_5_shows_the_median_example_in_the_middle():
    loss = torch.randperm(1001, generator=Generator().manual_seed(0)).float()
    assert loss[evenly(loss, 5)].tolist() == [100, 300, 500, 700, 900]
    assert loss[evenly(loss, 1)].item() == loss.median()
