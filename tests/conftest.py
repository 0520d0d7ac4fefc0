"""What several test files share."""

import os
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# One thread a process: of two workers with two threads each, one waits for the other longer than a network takes.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Modules with shapes in their signatures are checked in every call; in the others the checks cost more than the tests.
ROOT = Path(__file__).parent.parent
SHAPED = [path.relative_to(ROOT) for path in ROOT.glob("stn/**/*.py") if "jaxtyping" in path.read_text()]
install_import_hook([".".join(path.with_suffix("").parts) for path in SHAPED], "beartype.beartype")

# what a machine without a network may lack (scripts/bundle.py): a file that imports one of them is left out there
LACKING = [name for name in ("albumentations", "onnxscript", "scipy", "wandb", "yaml") if find_spec(name) is None]
READERS = ("datasets.mnist", "datasets.colocalisation", "training.colocalisation")  # of digits
IMPORTS = re.compile(rf"^(from|import) (fake_)?({'|'.join(LACKING) or '-'})\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    lacking = collection_path.suffix == ".py" and IMPORTS.search(collection_path.read_text())
    return True if lacking else None


def pytest_report_header() -> str | None:
    return f"not installed: {', '.join(LACKING)}; the files that import them are left out" if LACKING else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="PyTorch sees no CUDA device"))


@pytest.fixture(scope="session")
def fonts():
    """Skips tests of rendered house numbers where their fonts are not there."""
    if sys.version_info < (3, 11):
        pytest.skip("one of the fonts needs Python 3.11")


@pytest.fixture
def random_digits(monkeypatch):
    """200 images of noise in MNIST's place, so that a data set costs nothing and needs no files."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (200, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, 200))
    modules = [import_module(f"stn.experiments.{name}") for name in READERS]  # all of them, before one is changed
    for module in modules:
        monkeypatch.setattr(module, "load_digits", lambda root, split: (images, labels))
