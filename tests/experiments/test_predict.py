"""scripts/predict.py: an image file gets an answer or an error of one line, and a picture that overwrites nothing."""

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


def test_an_answer_below_90_percent_is_called_not_sure(predict):
    share = torch.full((10,), 0.01)
    share[8], share[4] = 0.89, 0.03
    assert predict["answer"](share) == "not sure: 8 (89 %) or 4 (3 %)"
    share[8] = 0.91
    assert predict["answer"](share) == "8 (91 %)"


def test_good_images_are_drawn_and_bad_ones_named(script, tmp_path):
    Image.fromarray(255 - digit()).save(tmp_path / "seven.png")
    Image.new("L", (30, 30), 128).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "seven.png").read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.full((60, 40), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    Image.fromarray(255 - np.hstack([digit(), digit()])).save(tmp_path / "two.png")
    bad = ("text.png", "cut.png", "none.png", "blank.png", "empty.png", "nan.tiff", "two.png")
    files = [tmp_path / name for name in (*bad, "seven.png")]
    code, out = script(*files, "--model", RTS, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seven-stn.png"]
    assert re.search(
        r"seven.png: 7 \(\d+ %\); 40 x 60 px, dark ink, light evened out, \d+ % of .*; \S+seven-stn.png", out
    )
    with Image.open(tmp_path / "out/seven-stn.png") as picture:
        assert 2.5 < picture.width / picture.height < 3  # three squares over a line of text
    lines = code.splitlines()
    said = (
        "not a readable image",
        "cannot be used",
        "No such file",
        "no ink",
        "not a readable image",
        "nan",
        "2 separate figures",
    )
    for line, name, message in zip(lines, bad, said, strict=True):
        assert line.startswith(f"error: {tmp_path / name}: ")
        assert message in line


def test_a_picture_that_is_there_is_kept_without_force(script, tmp_path):
    Image.fromarray(digit()).save(tmp_path / "seven.png")
    (tmp_path / "seven-stn.png").write_text("mine")
    words = (tmp_path / "seven.png", "--model", RTS, "--out", tmp_path)
    code, _ = script(*words)
    assert re.fullmatch(r"error: \S+seven-stn.png exists: overwrite it with --force, [^\n]*", code)
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
    assert re.fullmatch(
        r"error: no recorded network is called 'nothing': choose one of \w+-\S+(, \w+-\S+)+( and \d+ more)?", code
    )
    code, _ = script(tmp_path / "seven.png", "--model", "mnist_cnn-r-fast_sgd")
    assert re.fullmatch(r"error: mnist_cnn-r-\S+ has no spatial transformer: choose one with `st` in its name", code)


def test_a_network_for_other_data_is_refused(script, tmp_path):
    other = next(n for n in zoo.find(ROOT, Path("no-such-folder")) if n.startswith("addition"))
    Image.fromarray(digit()).save(tmp_path / "seven.png")
    code, _ = script(tmp_path / "seven.png", "--model", other)
    assert re.fullmatch(rf"error: {other} was trained on data=addition: [^\n]*", code)
