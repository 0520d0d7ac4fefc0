"""Photographs of digits: light, place, size and pen are taken out, and what is no digit is refused in one line."""

import re
import runpy

import numpy as np
import pytest
import torch
from photographs import photograph
from PIL import Image

from stn.experiments import zoo
from stn.experiments.command import ROOT
from stn.experiments.datasets import handwriting
from stn.experiments.datasets.mnist import load_digits

PHOTOGRAPHS = 60


def seven():
    """A 7 of thick strokes on 60 x 40 pixels, white on black."""
    array = np.zeros((60, 40), np.uint8)
    array[10:16, 8:32] = 255
    for i in range(36):
        x = 28 - i // 3
        array[16 + i, x - 3 : x + 3] = 255
    return array


def paper(*inks, size=(200, 300)):
    """Bright paper with these dark pieces, each (array, y, x)."""
    array = np.full(size, 220, np.uint8)
    for ink, y, x in inks:
        array[y : y + ink.shape[0], x : x + ink.shape[1]] -= (ink * 0.7).astype(np.uint8)
    return Image.fromarray(array)


def difference(one, other):
    """The mean difference of two digits, between 0 and 1, where a pixel's shift of the whole does not count."""
    shifted = [np.roll(one, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(np.abs(each.astype(float) - other).mean() / 255 for each in shifted)


@pytest.fixture(scope="module")
def read():
    """(probabilities (N, 10), labels) of the default network on synthetic photographs of test digits."""
    rng = np.random.default_rng(2015)
    images, labels = zip(*(photograph(i, rng) for i in rng.choice(10_000, PHOTOGRAPHS, replace=False)), strict=True)
    model = zoo.load(zoo.best_transformer("rts"))
    digits = []
    for image in images:
        try:
            digits.append(handwriting.find(image).digit)
        except ValueError:  # counts as wrong
            digits.append(np.zeros((28, 28), np.uint8))
    u = torch.stack([handwriting.placed(digit, model.in_shape[1]) for digit in digits])
    with torch.no_grad():
        return model.network(u).softmax(1), torch.tensor(labels)


def test_95_of_100_photographs_are_read_right(read):
    share, labels = read
    assert (share.argmax(1) == labels).float().mean() >= 0.95


def test_an_answer_that_is_sure_is_right(read):
    share, labels = read
    sure = share.amax(1) >= runpy.run_path(str(ROOT / "scripts/predict.py"))["SURE"]
    assert sure.float().mean() > 0.85
    assert (share.argmax(1) == labels)[sure].float().mean() >= 0.98


def test_a_digit_of_mnist_comes_back_as_it_was():
    images, _ = load_digits(ROOT / "data", "t10k")
    assert np.median([difference(handwriting.find(Image.fromarray(x)).digit, x) for x in images[:20].numpy()]) < 0.03


@pytest.mark.parametrize(
    "given",
    [
        Image.fromarray(seven()),
        Image.fromarray(255 - seven()),
        Image.fromarray((60 + seven().astype(float) / 255 * 120).astype(np.uint8)),
        Image.fromarray(np.stack([255 - seven()] * 3, axis=-1)),
        Image.merge("LA", [Image.new("L", (40, 60)), Image.fromarray(seven())]),
        Image.fromarray(seven().astype(np.uint16) * 257),
        Image.fromarray(seven().astype(np.float32) / 100),
        Image.fromarray(seven()).convert("1"),
        Image.fromarray(255 - seven()).convert("P"),
        Image.fromarray(255 - seven()).convert("CMYK"),
        paper((seven(), 20, 30)),
        paper((seven(), 130, 250)),
        paper((np.kron(seven(), np.ones((3, 3), np.uint8)), 10, 100)),
    ],
    ids=["grey", "inverted", "faint", "colour", "transparent", "16 bit", "float", "1 bit", "palette", "CMYK",
         "top left", "bottom right", "large"],
)  # fmt: skip
def test_every_kind_of_image_becomes_the_same_digit(given):
    digit = handwriting.find(given).digit
    assert difference(digit, handwriting.find(Image.fromarray(seven())).digit) < 0.03
    assert (digit.min(), digit.max()) == (0, 255)


def test_box_and_centre_of_mass_are_those_of_mnist():
    found = handwriting.find(paper((seven(), 120, 230)))
    y, x = np.nonzero(found.digit)
    assert max(np.ptp(y), np.ptp(x)) + 1 == 20
    rows, columns = np.indices((28, 28))
    for at in (rows, columns):
        assert abs((at * found.digit.astype(float)).sum() / found.digit.sum(dtype=float) - 13.5) <= 0.5
    np.testing.assert_allclose(found.box, (238 / 300, 130 / 200, 262 / 300, 172 / 200), atol=0.01)
    assert found.done == "300 x 200 px, dark ink, light evened out, 21 % of the picture scaled to 20 px"


def test_a_thin_pen_is_widened():
    line = np.zeros((100, 100), np.uint8)
    line[:, 50] = 255
    found = handwriting.find(paper((line, 50, 100)))
    assert "thin stroke widened" in found.done
    assert 1.5 < found.digit.sum() / 255 / 20 < 3


def test_a_shadow_across_the_paper_changes_nothing():
    plain = np.asarray(paper((seven(), 60, 120))).astype(float)
    shadow = np.where(np.arange(300) > 140, 0.5, 1.0)
    found = handwriting.find(Image.fromarray((plain * shadow).astype(np.uint8)))
    assert difference(found.digit, handwriting.find(Image.fromarray(plain.astype(np.uint8))).digit) < 0.04


def test_a_photograph_that_lies_on_its_side_is_set_upright():
    image = Image.fromarray(np.rot90(seven()))
    exif = image.getexif()
    exif[0x0112] = 6  # turn clockwise by a quarter to view
    image.info["exif"] = exif.tobytes()
    np.testing.assert_array_equal(handwriting.find(image).digit, handwriting.find(Image.fromarray(seven())).digit)


def test_the_table_beside_the_paper_is_no_digit():
    array = np.asarray(paper((seven(), 60, 120))).copy()
    array[:, :20] = 30
    np.testing.assert_allclose(handwriting.find(Image.fromarray(array)).box[0], 128 / 300, atol=0.01)


def test_a_digit_is_put_in_the_middle_of_the_canvas():
    digit = np.full((28, 28), 255, np.uint8)
    for side in (28, 42, 60):
        u = handwriting.placed(digit, side)
        assert u.shape == (1, side, side)
        assert u.sum() == u[0, (side - 28) // 2 :, (side - 28) // 2 :][:28, :28].sum() == 28 * 28


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (30, 30), 128), "no ink is visible"),
        (Image.new("L", (1, 1)), "no ink is visible"),
        (paper(), "no ink is visible"),
        (Image.fromarray((200 + np.random.default_rng(0).normal(size=(90, 90)) * 9).astype(np.uint8)), "no ink"),
        (Image.fromarray(np.full((9, 9), np.nan, np.float32)), "nan or infinite"),
        (paper((seven(), 60, 40), (seven(), 60, 160)), "it shows 2 separate figures: crop it to one digit"),
    ],
    ids=["grey", "one pixel", "paper", "noise", "nan", "two"],
)
def test_what_is_no_digit_is_refused_in_one_line(image, message):
    with pytest.raises(ValueError, match=message) as caught:
        handwriting.find(image)
    assert "\n" not in str(caught.value)


def test_a_5_whose_bar_floats_is_one_digit():
    five = np.zeros((60, 60), np.uint8)
    five[8:34, 10:16] = five[28:34, 10:40] = five[34:60, 34:40] = five[54:, 10:40] = 255
    for i in range(30):  # its bar, tilted
        five[12 - i * 12 // 30 :, 25 + i][:6] = 255
    assert handwriting.find(paper((five, 60, 120))).box[1] < 62 / 200


def test_images_of_noise_and_every_shape_end_in_a_digit_or_a_line():
    rng = np.random.default_rng(0)
    for _ in range(40):
        h, w = (int(side) for side in 10 ** rng.uniform(0, 2.3, 2))
        array = rng.integers(0, 256, (h, w)) * (rng.random((h, w)) < 10 ** rng.uniform(-3, 0))
        try:
            assert handwriting.find(Image.fromarray(array.astype(np.uint8))).digit.max() == 255
        except ValueError as error:
            assert re.fullmatch(r"[^\n]+", str(error))  # noqa: PT017
