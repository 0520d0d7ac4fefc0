"""The first losses of every experiment through the program's own path, pinned: code that computes something else fails.

Where that is meant, raise the REVISION of the module that changed, so that no older run counts as the same; pin anew:
    python tests/experiments/test_pinned.py [NAME ...]
On the machine and PyTorch that they were pinned with the losses are the same to the last bit; elsewhere sums run in
another order, and TOLERANCE is what that may change in three steps, or OF_BIRDS behind a batch norm over four images.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from composing import compose

from stn.experiments import build
from stn.experiments.datasets import synthetic_birds
from stn.experiments.datasets.fetch import sha256
from stn.experiments.training import environment, run
from stn.experiments.training.job import plan

ROOT = Path(__file__).parents[2]
PINNED = Path(__file__).with_name("pinned_losses.json")
TOLERANCE, OF_BIRDS = 1e-3, 1e-2  # relative
STEPS = 3
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml"))
SMALL = {  # what makes three steps cheap, by the first word of an experiment
    "svhn": ["data=svhn_rendered", "width=0.1", "dropout=0"],
    "cub": ["data=synthetic_birds", "data.shrink=7", "model.backbone=efficientnet_lite0", "model.weights=random",
            "model.frozen=_blocks.4", "model.last=_blocks.10", "model.sample_px=32", "schedule.localisation_lr=1"],
}  # fmt: skip
DISTORTIONS = ("rts", "p", "e", "tc")


def overrides(experiment: str) -> list[str]:
    name, _, distortion = experiment.partition("-")
    first = name.split("_")[0]
    size = [] if first == "coloc" else ["schedule.batch_size=4"]
    words = [f"experiment={name}", "schedule=smoke", f"schedule.steps={STEPS}", "schedule.block_steps=1", *size,
             "logger=none", "progress=false", "precision=fp32", "device=cpu", "threads=1", "pictures=0"]  # fmt: skip
    return [*words, *SMALL.get(first, []), *([f"data/distortion={distortion}"] if distortion else [])]


def machine() -> dict[str, str]:
    found = environment.describe(torch.device("cpu"))
    return {"device": found["device"], "torch": found["versions"]["torch"]}


def make_data(root: Path) -> Path:
    """MNIST itself, house numbers of noise, and a few drawn birds."""
    (root / "mnist").symlink_to(ROOT / "data/mnist")
    (root / "manifest.yaml").symlink_to(ROOT / "data/manifest.yaml")
    rng, sizes = np.random.default_rng(0), {"train": 40, "valid": 4, "test": 8}
    store = root / "svhn_rendered/64px"
    store.mkdir(parents=True)
    for split, n in sizes.items():
        np.save(store / f"{split}.npy", rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8))
        np.save(store / f"{split}-labels.npy", rng.integers(0, 11, (n, 5), dtype=np.uint8))
    index = {
        "size_px": 64,
        "numbers": sizes,
        "dropped": {},
        "sha256": {path.stem: sha256(path) for path in store.iterdir()},
    }
    (store / "index.json").write_text(json.dumps(index))
    synthetic_birds.write(root / synthetic_birds.FOLDER, train=2, test=1)
    return root


def losses(experiment: str, data: Path, runs: Path) -> list[float]:
    config, _ = compose(*overrides(experiment), f"data.root={data}", f"runs_dir={runs}")
    job = plan(config, [])
    job.folder.mkdir(parents=True)

    def few(distortion: Any, digits: Any, seed: int) -> Any:  # the test set is not looked at
        return torch.zeros(len(digits), distortion.canvas_px, distortion.canvas_px, dtype=torch.uint8)

    torch.set_num_threads(1)
    with (
        mock.patch("stn.experiments.datasets.mnist.frozen", few),
        mock.patch("stn.experiments.datasets.addition.frozen", few),
    ):
        module = run.build_training(config)
        run.fit(job, module, torch.device("cpu"), run.describe(job, module, torch.device("cpu")), [], [])
    return [entry["train/loss"] for entry in module.curve]


def pin(names: list[str], old: dict[str, Any], data: Path, runs: Path) -> dict[str, Any]:
    """The old entries, with those of these names computed anew."""
    rows = {}
    for each in names:
        revisions = build.revisions(compose(*overrides(each))[0])
        rows[each] = {"machine": machine(), "revisions": revisions, "losses": losses(each, data, runs / each)}
        print(each, rows[each]["losses"], flush=True)
    return old | rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


ALL = [*EXPERIMENTS, *(f"mnist_st_fcn_tps-{distortion}" for distortion in DISTORTIONS), "mnist_cnn_pooled-rts"]


@pytest.mark.parametrize("experiment", ALL)
def test_the_first_losses_are_the_pinned_ones(experiment, data, tmp_path):
    entry = json.loads(PINNED.read_text())[experiment]
    config, _ = compose(*overrides(experiment))
    revisions = build.revisions(config)
    assert entry["revisions"] == revisions, "the revisions were raised: pin anew"
    found = losses(experiment, data, tmp_path)
    exact = entry["machine"] == machine()
    tolerance = OF_BIRDS if experiment.startswith("cub") else TOLERANCE
    assert found == (entry["losses"] if exact else pytest.approx(entry["losses"], rel=tolerance)), (
        f"{experiment} computes something else: raise the REVISION of what changed among {revisions}, then pin anew"
    )


def test_every_experiment_is_pinned():
    assert set(json.loads(PINNED.read_text())) == set(ALL)


def test_pinning_one_anew_leaves_the_others_as_they_are(data, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "machine", lambda: {"device": "another", "torch": "another"})
    old = json.loads(PINNED.read_text())
    new = pin(["mnist_fcn"], old, data, tmp_path)
    assert [name for name in old if new[name] != old[name]] == ["mnist_fcn"]
    assert new["mnist_fcn"]["machine"] == machine()


if __name__ == "__main__":
    old = json.loads(PINNED.read_text()) if sys.argv[1:] else {}
    with tempfile.TemporaryDirectory() as scratch:
        pinned = pin(sys.argv[1:] or ALL, old, make_data(Path(scratch)), Path(scratch) / "runs")
    PINNED.write_text(json.dumps(pinned, indent=1) + "\n")
