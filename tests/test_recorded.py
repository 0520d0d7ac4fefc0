"""Recorded networks in other hands: applied to image files, exported to ONNX, described by their cards."""

import json
import re
import runpy
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_results import TABLE, record
from torch import nn

from stn import Affine, Projective, SpatialTransformer, ThinPlateSpline, recorded
from stn.localisation import fully_connected
from stn.results import cards, records, tables

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "results/weights").glob("*.pt"))
RTS = "mnist_st_cnn_tps-rts-fast-seed0-1f16407ecd"


@pytest.fixture(scope="module")
def predict():
    return runpy.run_path(str(ROOT / "scripts/predict.py"))


@pytest.fixture
def script(monkeypatch, capsys):
    """A script of this project: exit status or message, stdout."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
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


# --- an image file becomes what the network knows


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
def test_every_kind_of_image_becomes_the_same_white_digit_on_black(predict, given):
    expected, _ = predict["fit"](Image.fromarray(digit()), 42)
    u, _ = predict["fit"](given, 42)
    torch.testing.assert_close(u, expected, atol=0.02, rtol=0)
    assert u.shape == (1, 42, 42)
    assert (u.min(), u.max()) == (0, 1)


def test_the_longer_side_fills_the_canvas_and_the_rest_is_background(predict):
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


# --- the script


def test_predict_writes_input_grid_output_and_says_the_class_and_names_what_it_cannot_read(script, tmp_path):
    Image.fromarray(255 - digit()).save(tmp_path / "seven.png")
    Image.new("L", (30, 30), 128).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "seven.png").read_bytes()[:60])
    files = [tmp_path / name for name in ("text.png", "cut.png", "none.png", "blank.png", "seven.png")]
    code, out = script("predict.py", *files, "--model", RTS, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seven-stn.png"]
    assert re.search(r"seven.png: 7 \(\d+ %\), then \d \(\d+ %\); 40 x 60 L; .*inverted", out)
    with Image.open(tmp_path / "out/seven-stn.png") as picture:
        assert picture.width > 2.5 * picture.height  # three squares over a line of text
    said = code.splitlines()
    assert [line.split(": ")[0] for line in said] == ["error"] * 4
    assert ["no image that can be read" in said[0], "No such file" in said[2], "one single value" in said[3]] == [
        True
    ] * 3


def test_two_images_whose_pictures_would_be_one_file_are_refused(script, tmp_path):
    for name in ("seven.png", "seven.bmp"):
        Image.fromarray(digit()).save(tmp_path / name)
    said, _ = script(
        "predict.py", tmp_path / "seven.png", tmp_path / "seven.bmp", "--model", RTS, "--out", tmp_path / "out"
    )
    assert re.fullmatch(r"error: several images are called 'seven' [^\n]*", said)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_or_warps_nothing_is_named_with_the_choice(script, tmp_path):
    Image.fromarray(digit()).save(tmp_path / "seven.png")
    said, _ = script("predict.py", tmp_path / "seven.png", "--model", "nothing")
    assert re.fullmatch(r"error: no recorded network is called 'nothing': choose one of \w+-\S+(, \w+-\S+)+", said)
    said, _ = script("predict.py", tmp_path / "seven.png", "--model", "mnist_cnn-r-fast-seed0-3141649030")
    assert re.fullmatch(r"error: mnist_cnn-r-\S+ has no spatial transformer: choose one with `st` in its name", said)


# --- recorded networks


@pytest.fixture
def project(tmp_path):
    """A project with two recorded networks on rts."""
    for folder in ("records", "weights"):
        (tmp_path / "results" / folder).mkdir(parents=True)
    for name, error in (("one", 2.0), ("other", 1.0)):
        made = json.loads((ROOT / f"results/records/{RTS}.json").read_text()) | {"metrics": {"test/error": error}}
        records.write(tmp_path / f"results/records/{name}.json", made)
        shutil.copy(ROOT / f"results/weights/{RTS}.pt", tmp_path / f"results/weights/{name}.pt")
    return tmp_path


def test_the_transformer_that_errs_least_is_the_default(project):
    assert recorded.transforms_on("rts", project) == "other"
    with pytest.raises(ValueError, match="no recorded spatial transformer on tc: name another with --model"):
        recorded.transforms_on("tc", project)


def test_the_longest_trained_network_of_an_experiment_is_found_among_own_runs_and_kept_ones(project):
    runs = project / "elsewhere"
    shutil.copytree(project / "results/weights", runs / "longer")
    made = json.loads((project / "results/records/one.json").read_text())
    (runs / "longer/other.pt").rename(runs / "longer/weights.pt")
    records.write(runs / "longer/result.json", made | {"steps": made["steps"] + 1})
    find = partial(recorded.longest, "mnist_st_cnn_tps", project)
    assert find(runs)[1] == runs / "longer/weights.pt"
    assert find(project / "runs", distortion="rts")[0]["steps"] == made["steps"]
    assert find(runs, distortion="tc") is None
    assert recorded.longest("mnist_cnn", project, runs) is None


def test_a_name_may_be_shortened_to_where_it_is_the_only_one(project):
    assert recorded.load("on", project).name == "one"
    with pytest.raises(ValueError, match="2 recorded networks begin with 'o': choose one of one, other"):
        recorded.load("o", project)


def test_a_recorded_network_errs_as_its_record_says(project):
    """On the first thousand of the frozen test images; the rest would take longer."""
    from stn.datasets.distortions import frozen
    from stn.datasets.mnist import TEST_SEED, load_digits

    digits, labels = load_digits(ROOT / "data", "t10k")
    model = recorded.load(RTS, ROOT)
    u = frozen("rts", digits, TEST_SEED)[:1000, None].float() / 255
    with torch.no_grad():
        wrong = 100 * (model.network(u).argmax(1) != labels[:1000]).float().mean().item()
    assert abs(wrong - model.record["metrics"]["test/error"]) < 2  # three standard errors of a share of 2 % are 1.3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "results/weights/one.pt").write_bytes(b""), "the weights .*one.pt do not fit their record: "),
        (lambda p: (p / "results/weights/one.pt").write_bytes(b"no weights"), "the weights .*one.pt do not fit their"),
        (lambda p: torch.save({"a": torch.ones(1)}, p / "results/weights/one.pt"), "the weights .*one.pt do not fit"),
        (lambda p: (p / "results/records/one.json").write_text("{"), "the record .*one.json is damaged"),
    ],
    ids=["empty", "damaged", "of another network", "record damaged"],
)
def test_weights_or_records_that_cannot_be_used_are_named_in_one_line(project, damage, said):
    damage(project)
    with pytest.raises(ValueError, match=rf"^{said}[^\n]*$"):
        recorded.load("one", project)


def test_a_network_for_other_data_is_refused(project):
    path = project / "results/records/one.json"
    made = json.loads(path.read_text())
    made["config"]["data"] = {"_target_": "stn.datasets.svhn.Svhn"}
    records.write(path, made)
    with pytest.raises(ValueError, match=r"one was trained on stn.datasets.svhn.Svhn: .* distorted MNIST alone"):
        recorded.load("one", project)


# --- ONNX


class Three(nn.Module):
    """A spatial transformer with each transform on the same input, at thetas off the identity."""

    def __init__(self):
        super().__init__()
        self.warps = nn.ModuleList()
        for transform in (Affine(), Projective(), ThinPlateSpline()):
            localisation = fully_connected((1, 28, 28), transform)
            nn.init.normal_(localisation[-1].weight, std=0.5)
            self.warps.append(SpatialTransformer(localisation, transform))

    def forward(self, u):
        return tuple(warp(u) for warp in self.warps)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_affine_projective_and_spline_are_the_same_in_onnx_runtime(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    script = runpy.run_path(str(ROOT / "scripts/export_onnx.py"))
    torch.manual_seed(0)
    network, u = Three(), torch.rand(5, 1, 28, 28)
    moved = [(v - u).abs().mean() for v in network(u)]
    assert min(moved) > 0.01
    script["export"](network, u[:2], tmp_path / "three.onnx", ["affine", "projective", "spline"])
    for n in (1, 5):  # exported with 2
        assert script["difference"](network, tmp_path / "three.onnx", u[:n]) < script["TOLERANCE"]
    with torch.no_grad():
        network.warps[2].localisation[-1].bias += 0.01
    assert script["difference"](network, tmp_path / "three.onnx", u) > script["TOLERANCE"]  # it would be seen


# --- model cards


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_network_has_the_card_of_its_record(name):
    known = [tables.load(path) for path in sorted((ROOT / "conf/table").glob("*.yaml"))]
    made = cards.card(records.read(ROOT / f"results/records/{name}.json"), ROOT / f"results/weights/{name}.pt", known)
    assert (ROOT / f"results/weights/{name}.md").read_text() == made, "`make records` renews the cards"


def test_a_card_says_where_it_stands_and_that_made_data_are_made(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"abc")
    text = cards.card(record(error=1.5), tmp_path / "a.pt", [TABLE])
    assert "test/error 1.50 %" in text
    assert "Made up, FCN, R; the paper's figure is 2.1." in text
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in text  # sha256 of abc (FIPS 180-2)
    text = cards.card(record(error=1.5, made_data=True), tmp_path / "a.pt", [TABLE])
    assert "**made data**, so the paper's figure is no comparison" in text
    assert "the paper's figure is 2.1" not in text
    assert "in no table of the paper" in cards.card(record(), tmp_path / "a.pt", [])
