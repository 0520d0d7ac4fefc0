"""Co-localisation (A.2, Table 5): its images and boxes, the loss against a loop over pairs, the encoder's record."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stn.experiments import zoo
from stn.experiments.datasets.colocalisation import CommonDigit, ink, shifted, squares
from stn.experiments.networks.colocalisation import build
from stn.experiments.networks.sizing import num_params
from stn.experiments.training.colocalisation import Encoder, TripletHinge, iou, triplet_hinge, window
from stn.experiments.training.engine import Training
from stn.experiments.training.schedule import Schedule

ROOT = Path(__file__).parents[2]
ENCODER, LARGE, TPS = "mnist_cnn-r-fast-seed0", "mnist_cnn-rts-fast_sgd-seed0", "mnist_st_cnn_tps-e-fast-seed0"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def digits(monkeypatch):
    """60 digits of each class in MNIST's place: one of ink, 6 to 20 px wide and 20 high, of a class's own grey."""
    rng = np.random.default_rng(0)
    images, labels = np.zeros((600, 28, 28), np.uint8), np.repeat(np.arange(10), 60)
    for image, label in zip(images, labels, strict=True):
        half = rng.integers(3, 11)
        image[4:24, 14 - half : 14 + half] = 100 + 10 * label
    pair = torch.from_numpy(images), torch.from_numpy(labels)
    monkeypatch.setattr("stn.experiments.datasets.colocalisation.load_digits", lambda root, split: pair)
    return pair


def data(digit=3, patches=0, images=40, random_crops=2, shift_std_px=3.0, box="square", seed=0):
    return CommonDigit("nowhere", digit, patches, images, random_crops, shift_std_px, box, seed)


# --- images and boxes


def test_every_image_holds_one_digit_of_the_class_in_its_square(digits):
    d = data(digit=3)
    assert d.images.shape == (40, 1, 84, 84)
    for image, (left, top, right, bottom) in zip(d.images[:, 0], d.boxes.int().tolist(), strict=True):
        assert (right - left, bottom - top) == (28, 28)
        assert min(left, top) >= 0
        assert max(right, bottom) <= 84
        square = image[top:bottom, left:right]
        assert set(square.unique().tolist()) == {0, 130}
        assert square.long().sum() == image.long().sum()


def test_clutter_adds_parts_of_others_and_never_hides_the_digit(digits):
    plain, cluttered = data(patches=0), data(patches=16)
    added = (cluttered.images > 0).sum() - (data(patches=16).images == 130).sum()
    assert added > 40 * 36  # at least one whole patch an image, on average
    for image, (left, top, right, bottom) in zip(cluttered.images[:, 0], cluttered.boxes.int().tolist(), strict=True):
        assert (image[top:bottom, left:right] >= 130).sum() >= 20 * 6  # the maximum never hides the digit
    assert plain.images.shape == cluttered.images.shape


def test_the_ink_box_is_the_bounding_box_of_the_ink():
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 5:9, 7:20] = 3
    assert ink(image, torch.tensor([[10, 30]])).tolist() == [[17.0, 35.0, 30.0, 39.0]]
    assert squares(torch.tensor([[10, 30]])).tolist() == [[10.0, 30.0, 38.0, 58.0]]


def test_the_images_are_drawn_once_from_the_seed(digits):
    assert data(seed=1).checksums() == data(seed=1).checksums()
    assert data(seed=1).checksums()["train"] != data(seed=2).checksums()["train"]
    assert torch.equal(data(box="ink").images, data(box="square").images)


def test_a_batch_has_all_images_in_order_shifted_afresh(digits):
    d = data()
    u, index = d.batch(40, seeded(5))
    assert index.tolist() == list(range(40))
    assert torch.equal(u, d.batch(40, seeded(5))[0])
    assert torch.equal(data(shift_std_px=0.0).batch(40, seeded(5))[0], d.images.float() / 255)

    def centre(images):  # of the ink
        across = images.sum((1, 2)), images.sum((1, 3))
        return torch.stack([(line * torch.arange(84)).sum(1) / line.sum(1) for line in across], dim=1)

    far = (d.boxes.amin(1) > 15) & (d.boxes.amax(1) < 69)  # whose shift pushes nothing out of the image
    moves = torch.cat([(centre(d.batch(40, seeded(s))[0]) - centre(d.images.float()))[far] for s in range(200)])
    assert far.sum() > 3
    assert (moves - moves.round()).abs().max() < 1e-3
    assert moves.mean(0).abs().max() < 0.3
    assert moves.std(0).tolist() == pytest.approx([3, 3], abs=0.2)


def test_a_shift_moves_right_and_down_and_lets_black_in():
    images = torch.randint(1, 256, (3, 1, 9, 9), dtype=torch.uint8, generator=seeded())
    by = [(2, -1), (0, 0), (-9, 3)]
    for image, moved, (x, y) in zip(images.numpy(), shifted(images, torch.tensor(by)).numpy(), by, strict=True):
        expected = np.zeros((9, 9), np.uint8)
        for row in range(9):
            for column in range(9):
                if 0 <= row + y < 9 and 0 <= column + x < 9:
                    expected[row + y, column + x] = image[0, row, column]
        assert (moved[0] == expected).all()


def test_random_crops_are_windows_at_uniform_places_drawn_once(digits):
    d = data(random_crops=50)
    crops = list(d.crops())
    assert len(crops) == 50
    for k in (0, 49):
        for image, crop, (left, top) in zip(d.images[:, 0], crops[k], d.places[:, k].tolist(), strict=True):
            assert torch.equal(crop[0], image[top : top + 28, left : left + 28].float() / 255)
    places = d.places.flatten(0, 1).float()
    assert (places.min(), places.max()) == (0, 56)
    assert places.mean(0).tolist() == pytest.approx([28, 28], abs=1.5)
    assert places.var(0).tolist() == pytest.approx([(57**2 - 1) / 12] * 2, rel=0.08)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.08
    assert torch.equal(data(random_crops=50).places, d.places)
    assert not torch.equal(data(random_crops=50, seed=1).places, d.places)


def test_no_label_and_no_box_is_in_a_training_batch(digits):
    """Neither other boxes nor other labels change a weight: training never sees them."""

    def trained(box):
        torch.manual_seed(0)
        d = data(box=box)
        if box == "ink":
            d.boxes = torch.full_like(d.boxes, float("nan"))
            digits[1].zero_()
        return train(d)

    one, two = trained("square"), trained("ink")
    assert one.localisation[-1].weight.abs().sum() > 0
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


def train(d, steps=3):
    network = build(d.in_shape, d.classes, 100_000, 4, 0.8, 0.1)
    objective = TripletHinge.__new__(TripletHinge)
    torch.manual_seed(1)
    objective.margin, objective.attraction, objective.one_sided, objective.bf16 = 1.0, 1.0, True, False
    objective.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 8)).requires_grad_(False)
    schedule = Schedule(steps, 40, steps, {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9})
    module = Training(network, d, objective, schedule, 0, "fp32")
    objective.prepare(d)
    (optimizer,), generator = schedule.optimizers(network), seeded()
    for _ in range(steps):
        loss, _ = objective.loss(module, d.batch(40, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digit": 10}, r"data\.digit=10 is not a digit class: choose one of 0 to 9"),
        ({"digit": -1}, r"data\.digit=-1"),
        ({"patches": -1}, r"data\.patches=-1"),
        ({"images": 1}, r"data\.images=1"),
        ({"random_crops": 0}, r"data\.random_crops=0"),
        ({"shift_std_px": -1.0}, r"data\.shift_std_px=-1"),
        ({"images": 61}, r"data\.images=61 is too many: MNIST has 60 training digits of class 3"),
        ({"box": "tight"}, r"unknown data\.box='tight': choose square or ink"),
    ],
)
def test_data_that_cannot_be_drawn_are_refused_in_one_line(digits, change, said):
    with pytest.raises(ValueError, match=rf"^{said}[^\n]*$"):
        data(**change)


def test_a_smaller_batch_is_a_random_part_of_the_images(digits):
    d = data(shift_std_px=0.0)
    u, index = d.batch(15, seeded(1))
    assert len(set(index.tolist())) == 15
    assert torch.equal(u, d.images[index].float() / 255)
    assert not torch.equal(index, d.batch(15, seeded(2))[1])


def test_a_batch_of_more_than_all_images_is_refused(digits):
    with pytest.raises(ValueError, match=r"^schedule\.batch_size=41 is larger than data\.images=40: lower it$"):
        data().batch(41, seeded())


# --- network


@pytest.mark.parametrize(("stride", "params"), [(4, 5947), (1, 93179)])
def test_both_readings_of_a2_have_its_parameters(stride, params):
    network = build((1, 84, 84), 1, 100_000, stride, 0.8, 0.1)
    assert num_params(network) == params
    v, theta = network(torch.rand(2, 1, 84, 84), return_theta=True)
    assert v.shape == (2, 1, 28, 28)
    assert torch.allclose(theta, torch.tensor([[0.8, 0, 0]] * 2))
    with pytest.raises(ValueError, match=r"^budget=5000 is too small: with model.stride="):
        build((1, 84, 84), 1, 5000, stride, 0.8, 0.1)


@pytest.mark.parametrize("start", [0.0, 1.0, 1.5])
def test_a_start_that_is_no_window_within_the_image_is_refused(start):
    with pytest.raises(ValueError, match=rf"^model\.start={start} is not the scale [^\n]*between 0 and 1$"):
        build((1, 84, 84), 1, 100_000, 4, start, 0.1)


def test_no_window_leaves_the_image_whatever_the_weights():
    network = build((1, 84, 84), 1, 100_000, 4, 0.5, 0.5)
    for seed, size in enumerate((0.1, 1, 10)):
        for p in network.parameters():
            p.data.normal_(0, size, generator=seeded(seed))
        theta = network.localisation(torch.rand(50, 1, 84, 84, generator=seeded(seed)))
        assert window(theta, 84).min() >= -1e-3
        assert window(theta, 84).max() <= 84 + 1e-3
        assert theta[:, 1:].std() > 0.01


# --- loss and measure


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("k", "attraction"), [(1, 1.0), (3, 1.0), (3, 0.7)])
def test_the_loss_is_the_hinge_over_all_pairs_and_random_crops(k, attraction, one_sided):
    rng = np.random.default_rng(0)
    crop, random = rng.normal(size=(6, 4)), rng.normal(size=(6, k, 4))
    hinges = [
        max(0.0, attraction * ((crop[n] - crop[m]) ** 2).sum() - ((crop[n] - random[n, i]) ** 2).sum() + 1.5)
        for n, m in permutations(range(6), 2)
        for i in range(k)
    ]
    assert 0 < sum(h == 0 for h in hinges) < 30 * k  # both sides of the hinge are met
    loss = triplet_hinge(torch.tensor(crop), torch.tensor(random), 1.5, attraction, one_sided)
    assert loss.item() == pytest.approx(np.mean(hinges))


@pytest.mark.parametrize(("one_sided", "sides"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("a", [1.0, 0.25])
def test_the_gradient_draws_crops_together_and_off_random_ones(a, one_sided, sides):
    """By hand, where every hinge is active: the mean over m of 2 a (e_n - e_m) - 2 (e_n - e_rand), over n pairs.

    Each pair comes twice, as (n, m) and as (m, n), so that A.2's loss draws a crop twice as hard.
    """
    generator = seeded()
    crop, random = torch.randn(5, 3, generator=generator, requires_grad=True), torch.randn(5, 2, 3, generator=generator)
    triplet_hinge(crop, random, 1e3, a, one_sided).backward()
    for n in range(5):
        others = (crop.sum(0) - crop[n]) / 4
        expected = 2 * a * sides * (crop[n] - others) - 2 * (crop[n] - random[n].mean(0))
        assert torch.allclose(crop.grad[n], expected.detach() / 5, atol=1e-5)


def test_the_loss_compares_a_crop_with_random_crops_of_its_image(digits):
    d = data(images=40, random_crops=3, shift_std_px=0.0)
    network = build(d.in_shape, 1, 100_000, 4, 1 / 3, 0.1)  # before training: 28 px in the middle
    objective = TripletHinge.__new__(TripletHinge)
    objective.margin, objective.attraction, objective.one_sided = 1.0, 0.5, False
    objective.bf16, objective.encoder = False, nn.Flatten()
    objective.prepare(d)
    whole = d.batch(40, seeded())
    for u, index in (whole, tuple(part[10:20] for part in whole)):  # a device's share of a batch
        random = torch.stack([crops.flatten(1) for crops in d.crops()], dim=1)[index]
        loss, _ = objective.loss(network, (u, index))
        middle = u[..., 28:56, 28:56].flatten(1)
        assert loss.item() == pytest.approx(triplet_hinge(middle, random, 1.0, 0.5, False).item(), rel=1e-3)


def test_a_window_of_scale_s_covers_a_square_of_s_times_the_image():
    theta = torch.tensor([[1.0, 0, 0], [1 / 3, -2 / 3, 2 / 3], [-0.5, 0.0, 0.5]])
    expected = torch.tensor([[0.0, 0, 84, 84], [0, 56, 28, 84], [21, 42, 63, 84]])
    assert torch.allclose(window(theta, 84), expected, atol=1e-4)


def test_iou_counts_pixels():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 21, (50, 2, 2, 2)), axis=2)  # box a or b, near or far corner, x or y
    corners[:, :, 1] += 1
    boxes = torch.from_numpy(corners.reshape(50, 2, 4)).float()
    for (a, b), found in zip(corners, iou(boxes[:, 0], boxes[:, 1]), strict=True):
        masks = []
        for (left, top), (right, bottom) in (a, b):
            mask = np.zeros((22, 22), bool)
            mask[top:bottom, left:right] = True
            masks.append(mask)
        assert found.item() == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def test_accuracy_is_the_share_of_windows_with_iou_above_half():
    network = build((1, 84, 84), 1, 100_000, 4, 1 / 3, 0.1)  # before training: 28 px in the middle
    objective = TripletHinge.__new__(TripletHinge)
    boxes = torch.tensor([[28.0, 28, 56, 56], [30, 28, 58, 56], [40, 28, 68, 56], [0, 0, 28, 28]])
    found = objective.test(network, (torch.zeros(4, 1, 84, 84), boxes))
    assert found["accuracy"] == 50


# --- the encoder's record


def test_the_kept_encoder_is_the_cnn_of_table_1_and_frozen():
    classifier = zoo.load(ENCODER).network
    digits = torch.rand(5, 1, 28, 28)
    encoder = Encoder(classifier)
    first, second, scores = encoder.layers(digits)
    assert torch.equal(encoder(digits), torch.cat([first, second, scores], dim=1))
    assert torch.allclose(second @ encoder.scores.weight.T + encoder.scores.bias, scores, atol=1e-3)
    assert torch.allclose(scores, classifier(digits), atol=1e-4)  # without softmax
    assert not any(p.requires_grad for p in encoder.parameters())


def test_in_scaled_layers_every_unit_counts_alike_and_a_digit_is_a_margin_from_nothing():
    digits = torch.rand(5, 1, 28, 28)
    encoder = Encoder(zoo.load(ENCODER).network)
    encoder.fit(digits)
    apart = encoder(digits) - encoder(torch.zeros(1, 1, 28, 28))
    assert apart.square().sum(1).mean().item() == pytest.approx(1, abs=1e-4)
    parts = apart.split([h.shape[1] for h in encoder.layers(digits)], dim=1)
    assert len(parts) == 3
    assert [part.square().mean().item() for part in parts] == pytest.approx([1 / apart.shape[1]] * 3, rel=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_layers_are_scaled_by_the_training_digits_only_where_asked(digits, monkeypatch, tmp_path, scaled):
    monkeypatch.setattr("stn.experiments.training.colocalisation.load_digits", lambda root, split: digits)
    whole = zoo.load(ENCODER).id
    objective = TripletHinge(whole, 1.0, 1.0, False, scaled, "fp32", tmp_path, "nowhere")
    assert bool((objective.encoder.scale == 1).all()) is not scaled


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", r"[^\n]*nobody[^\n]*"),
        (TPS, rf"objective\.encoder={TPS} is not a digit CNN for 28 x 28 px: [^\n]*"),
        (LARGE, rf"objective\.encoder={LARGE} is not a digit CNN for 28 x 28 px: [^\n]*"),
    ],
)
def test_a_missing_and_a_foreign_encoder_are_one_clear_line(digits, tmp_path, name, said):
    with pytest.raises((ValueError, OSError), match=rf"^{said}$"):
        TripletHinge(name, 1.0, 1.0, False, False, "fp32", tmp_path, "nowhere")
