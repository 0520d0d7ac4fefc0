"""The figures by name, and the film of a short training."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from stn.experiments import draw
from stn.experiments.command import ROOT
from stn.experiments.figures import Untrained, digits, films, house_numbers, studies

NOWHERE = Path("no-such-folder")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts/figures.py"))


def test_every_picture_of_the_docs_has_a_name_and_a_caption(script):
    drawn = {path.stem for path in (ROOT / "docs/figures").iterdir() if path.suffix in (".png", ".gif", ".svg")}
    assert drawn <= script["FIGURES"].keys()
    assert drawn == yaml.safe_load((ROOT / "docs/figures/captions.yaml").read_text()).keys()


def test_named_figures_are_drawn_and_no_others(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", "figure3", "aliasing", "results", "--out", str(tmp_path)])
    script["main"]()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aliasing.png", "figure3.png", "results.svg"]
    assert capsys.readouterr().out.count("written: ") == 3


def test_the_names_are_listed_and_unknown_ones_refused(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figures.py", "--list"])
    script["main"]()
    assert capsys.readouterr().out.split() == list(script["FIGURES"])
    monkeypatch.setattr(sys, "argv", ["figures.py", "figure9", "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=r"^unknown figure 'figure9': choose among results, distortions, "):
        script["main"]()
    assert not (tmp_path / "out").exists()


def test_a_figure_whose_network_nobody_trained_names_the_run():
    with pytest.raises(Untrained, match=r"`python run.py experiment=svhn_multi data=svhn data.size_px=64`"):
        house_numbers.boxes(NOWHERE, "svhn", 64)


def test_the_committed_picture_of_kept_networks_is_drawn_again():
    again = np.asarray(digits.first_images(NOWHERE, "mnist_st_cnn_affine", "tc"), dtype=float)
    with Image.open(ROOT / "docs/figures/figure1_tc.png") as picture:
        before = np.asarray(picture.convert("RGB"), dtype=float)
    assert again.shape == before.shape
    assert np.abs(again - before).mean() < 2  # the network has float16 weights now, the caption is the same


def test_a_film_has_a_frame_for_the_start_and_each_block(script, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    seen, data = films.train(("experiment=coloc_t", "data.digit=8", "schedule.steps=40"), 2)
    assert sorted(seen) == [0, 10, 20, 30, 40]
    assert torch.allclose(seen[0].theta, torch.tensor([[0.5, 0, 0]] * 2))
    assert not torch.allclose(seen[20].theta, seen[10].theta)
    row = films.boxes(seen[20], data.boxes)
    assert len(row) == 2
    left, top, right, bottom = (data.boxes[0] / 84 * 111).round().int().tolist()
    square = np.array(row[0])[(top + bottom) // 2] == draw.BOX_COLOURS[1]
    assert set(np.flatnonzero(square.all(1))) >= {left, right}  # the sides of the digit's square
    path = script["save"](films.film(seen, lambda warp: draw.stack([films.boxes(warp, data.boxes)])), tmp_path / "film")
    with Image.open(path) as film:
        assert film.n_frames == 5


def test_each_error_of_a_study_has_a_mark_of_its_own(monkeypatch):
    """Two errors that are the same lie in two lanes, so neither hides the other."""
    first, second = (
        {"config": {"data": {"name": "mnist", "distortion": {"name": "e", "control": control}}, "model": {},
                    "schedule": {"batch_size": 10}},
         "experiment": "mnist_fcn", "seed": 0, "steps": 100, "metrics": {"test/error": 3.0}}
        for control in ("corners", "cells")
    )  # fmt: skip
    monkeypatch.setattr(studies.records, "read_kept", lambda folder: [first, second])
    picture = np.asarray(studies.errors(NOWHERE, "e").convert("RGB")).astype(int)
    picture = picture[studies.LINE + 12 :]  # below the legend
    for colour in ((213, 94, 0), (0, 114, 178)):
        assert (np.abs(picture - colour).max(-1) < 16).sum() > 80


def test_rows_of_pictures_keep_their_heights_and_names():
    white, black = (Image.new("RGB", (20, h), c) for h, c in ((30, "blue"), (10, "red")))
    page = draw.rows([("tall", [white, white]), ("", [black])])
    assert page.height == 30 + draw.GAP_PX + 10
    left = page.width - 40 - draw.GAP_PX
    assert page.getpixel((left, 29)) == page.getpixel((page.width - 1, 0)) == (0, 0, 255)
    assert page.getpixel((left, 30 + draw.GAP_PX)) == (255, 0, 0)
    assert page.getpixel((page.width - 1, 39)) == (255, 255, 255)
    assert np.asarray(page)[:30, : left - 1].min() == 0  # its name
    assert np.asarray(page)[31:, : left - 1].min() == 255
