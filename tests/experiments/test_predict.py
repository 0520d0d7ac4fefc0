"""scripts/predict.py: an image file becomes what a recorded network knows, and a picture that overwrites nothing."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stn.experiments import zoo
from stn.experiments.command import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")
RTS = "mnist_st_cnn_tps-rts"


@pytest.fixture(scope="module")
def predict():
    return runpy.run_path(str(ROOT / "scripts/predict.py"))


@pytest.fixture
def script(monkeypatch, capsys):
    """The script with these words: exit status or message, stdout."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
        try:
            runpy.run_path(str(ROOT / "scripts/predict.py"), run_name="__main__")
        except SystemExit as stop:
            return stop.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


def digit():
    """A 7 of thick strokes on 60 x 40 pixels, white on black."""
    array = np.zeros((60, 40), np.uint8)
    array[10:16, 8:32] = 255
    for i in range(36):
        x = 28 - i // 3
        array[16 + i, x - 3 : x + 3] = 255
    return array


@pytest.mark.parametrize(
    "given",
    [
        Image.fromarray(digit()),
        Image.fromarray(255 - digit()),
        Image.fromarray((60 + digit().astype(float) / 255 * 120).astype(np.uint8)),
        Image.fromarray(np.stack([255 - digit()] * 3, axis=-1)),
        Image.merge("LA", [Image.new("L", (40, 60)), Image.fromarray(digit())]),
        Image.fromarray(digit().astype(np.uint16) * 257),
        Image.fromarray(digit()).convert("1"),
        Image.fromarray(255 - digit()).convert("P"),
    ],
    ids=["grey", "inverted", "faint", "colour", "transparent", "16 bit", "1 bit", "palette"],
)
def test_every_kind_of_image_becomes_a_white_digit_on_black(predict, given):
    expected, _ = predict["fit"](Image.fromarray(digit()), 42)
    u, _ = predict["fit"](given, 42)
    torch.testing.assert_close(u, expected, atol=0.02, rtol=0)
    assert u.shape == (1, 42, 42)
    assert (u.min(), u.max()) == (0, 1)


def test_the_longer_side_fills_the_canvas(predict):
    u, done = predict["fit"](Image.fromarray(255 - digit()), 30)
    assert u[0, :, :5].abs().max() == 0
    assert u[0, :, 25:].abs().max() == 0
    assert done.split("; ") == [
        "40 x 60 L", "grey 0 to 255 stretched to 0 to 1", "inverted, its border is bright",
        "scaled to 20 x 30, centred on 30 x 30",
    ]  # fmt: skip


def test_a_photo_that_lies_on_its_side_is_set_upright(predict):
    image = Image.fromarray(np.rot90(digit()))
    exif = image.getexif()
    exif[0x0112] = 6  # turn clockwise by a quarter to view
    image.info["exif"] = exif.tobytes()
    torch.testing.assert_close(predict["fit"](image, 42)[0], predict["fit"](Image.fromarray(digit()), 42)[0])


def test_good_images_are_drawn_and_bad_ones_named(script, tmp_path):
    Image.fromarray(255 - digit()).save(tmp_path / "seven.png")
    Image.new("L", (30, 30), 128).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "seven.png").read_bytes()[:60])
    files = [tmp_path / name for name in ("text.png", "cut.png", "none.png", "blank.png", "seven.png")]
    code, out = script(*files, "--model", RTS, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seven-stn.png"]
    assert re.search(r"seven.png: 7 \(\d+ %\), then \d \(\d+ %\); 40 x 60 L; .*inverted", out)
    with Image.open(tmp_path / "out/seven-stn.png") as picture:
        assert picture.width > 2.5 * picture.height  # three squares over a line of text
    lines = code.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["error"] * 4
    assert "no image that can be read" in lines[0]
    assert "No such file" in lines[2]
    assert "one single value" in lines[3]


def test_a_picture_that_is_there_is_kept_without_force(script, tmp_path):
    Image.fromarray(digit()).save(tmp_path / "seven.png")
    (tmp_path / "seven-stn.png").write_text("mine")
    words = (tmp_path / "seven.png", "--model", RTS, "--out", tmp_path)
    code, _ = script(*words)
    assert re.fullmatch(r"error: \S+seven-stn.png exists: --force overwrites it, [^\n]*", code)
    assert (tmp_path / "seven-stn.png").read_text() == "mine"
    assert script(*words, "--force")[0] == 0
    with Image.open(tmp_path / "seven-stn.png") as picture:
        assert picture.format == "PNG"


def test_two_images_that_would_share_a_picture_are_refused(script, tmp_path):
    for name in ("seven.png", "seven.bmp"):
        Image.fromarray(digit()).save(tmp_path / name)
    files = (tmp_path / "seven.png", tmp_path / "seven.bmp")
    code, _ = script(*files, "--model", RTS, "--out", tmp_path / "out")
    assert re.fullmatch(r"error: several images are called 'seven' [^\n]*", code)
    assert not (tmp_path / "out").exists()


def test_a_network_without_a_transformer_is_refused(script, tmp_path):
    Image.fromarray(digit()).save(tmp_path / "seven.png")
    code, _ = script(tmp_path / "seven.png", "--model", "nothing")
    assert re.fullmatch(r"error: no recorded network is called 'nothing': choose one of \w+-\S+(, \w+-\S+)+", code)
    code, _ = script(tmp_path / "seven.png", "--model", "mnist_cnn-r-fast_sgd")
    assert re.fullmatch(r"error: mnist_cnn-r-\S+ has no spatial transformer: choose one with `st` in its name", code)


def test_a_network_for_other_data_is_refused(script, tmp_path):
    other = next(n for n in zoo.find(ROOT, Path("no-such-folder")) if n.startswith("addition"))
    Image.fromarray(digit()).save(tmp_path / "seven.png")
    code, _ = script(tmp_path / "seven.png", "--model", other)
    assert re.fullmatch(rf"error: {other} was trained on data=addition: [^\n]*", code)
