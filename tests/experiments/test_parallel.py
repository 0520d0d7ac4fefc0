"""Several processes, gradient accumulation and dropout in the step engine, against one process that does it whole."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from stn.experiments.datasets.fetch import sha256
from stn.experiments.datasets.svhn import NULL, RenderedNumbers
from stn.experiments.networks.svhn import build
from stn.experiments.training.checkpoint import Checkpoint
from stn.experiments.training.classification import Classification
from stn.experiments.training.engine import Training
from stn.experiments.training.run import keep
from stn.experiments.training.schedule import Schedule

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of noise."""
    root = tmp_path_factory.mktemp("data")
    store, rng = root / "svhn_rendered" / "64px", np.random.default_rng(0)
    store.mkdir(parents=True)
    sizes = {"train": 40, "valid": 3, "test": 7}
    for split, n in sizes.items():
        np.save(store / f"{split}.npy", rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8))
        np.save(store / f"{split}-labels.npy", rng.integers(0, NULL + 1, (n, 5), dtype=np.uint8))
    index = {
        "size_px": 64,
        "numbers": sizes,
        "dropped": {},
        "sha256": {path.stem: sha256(path) for path in store.iterdir()},
    }
    (store / "index.json").write_text(json.dumps(index))
    return root


# the plain CNN: a transformer at the identity has its points on pixel centres, where the sub-gradient hangs on the last
# bit, and sums in another order then end elsewhere
def engine(root, accumulate=1, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    network = build((3, 64, 64), 11, transformers="none", width=0.1, dropout=dropout)
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    schedule = Schedule(steps=6, batch_size=8, block_steps=2, optimizer=optimizer, bound={"all": 1.0})
    return Training(network, RenderedNumbers(root, 64), Classification(), schedule, 3, "fp32", accumulate)


def fit(module, epochs=3, *callbacks, **kwargs):
    pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, **kwargs)  # fmt: skip
    return module


def distance(one, two):
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("accumulate", [2, 8])
def test_a_batch_in_parts_takes_the_steps_of_a_whole_one(root, accumulate):
    whole, in_parts = fit(engine(root)), fit(engine(root, accumulate))
    assert distance(whole, engine(root)) > 1e-2
    assert distance(whole, in_parts) < 1e-5
    for ours, expected in zip(in_parts.curve, whole.curve, strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)


def test_a_run_with_dropout_resumes_in_the_bits_of_an_uninterrupted_one(root, tmp_path):
    whole = fit(engine(root, dropout=0.5))
    assert distance(whole, fit(engine(root))) > 1e-3  # dropout does something
    fit(engine(root, dropout=0.5), 1, Checkpoint(tmp_path / "c.ckpt", every_s=0.0))
    torch.rand(7)  # whatever the numbers were that PyTorch would have drawn next
    resumed = fit(engine(root, dropout=0.5, seed=1), 3, ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert distance(whole, resumed) == 0
    assert whole.curve == resumed.curve


def run(root, folder, *overrides, expected=0):
    environment = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "run.py", "data=svhn_rendered", f"data.root={root}", f"runs_dir={folder}", "logger=none",
         "threads=1", "device=cpu", "progress=false", "schedule=svhn_small", "width=0.05", "precision=fp32",
         "schedule.steps=6", "schedule.block_steps=2", "schedule.batch_size=8", *overrides],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == expected, done.stderr
    return done


def test_two_processes_have_the_loss_curve_of_one_and_count_every_test_image_once(root, tmp_path):
    records = []
    for devices in (1, 2):
        run(root, tmp_path / str(devices), "experiment=svhn_cnn", f"devices={devices}")
        (file,) = (tmp_path / str(devices)).glob("*/result.json")
        records.append(json.loads(file.read_text()))
    one, two = records
    assert one["config"] == two["config"]  # how many devices is no part of what is computed
    for ours, expected in zip(two["curve"], one["curve"], strict=True):
        assert ours == pytest.approx(expected, rel=1e-3)  # sums in another order
    assert one["metrics"] == two["metrics"]
    assert [len(record["curve"]) for record in records] == [3, 3]


@pytest.mark.parametrize("devices", [1, 2])
def test_the_core_seconds_of_a_run_are_those_of_all_its_processes(devices, tmp_path):
    clock = SimpleNamespace(seconds=1.0, core_seconds=3.0)
    module: Any = SimpleNamespace(clock=clock, curve=[], sessions=[], schedule=SimpleNamespace(batch_size=8))
    job: Any = SimpleNamespace(config={"devices": devices}, folder=tmp_path, id="a")
    inspect.unwrap(keep)(
        job, module, {"status": "diverged", "step": 2, "steps": 5, "id": "a", "metrics": {}, "config": {"data": {}}}
    )
    assert json.loads((tmp_path / "result.json").read_text())["core_seconds"] == 3.0 * devices


def test_what_does_not_divide_or_would_sweep_twice_is_refused_in_one_line(root, tmp_path):
    odd = run(root, tmp_path, "experiment=svhn_cnn", "devices=3", expected=1)
    assert "error: schedule.batch_size=8 has to be a multiple of devices x accumulate = 3" in odd.stderr
    sweep = run(root, tmp_path, "table=table2", "devices=2", "data.size_px=64", "experiment=svhn_cnn", expected=1)
    assert "error: devices=2 in a sweep" in sweep.stderr
    assert not list(tmp_path.glob("svhn_*"))
