"""What several test files share."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch with one thread: on a busy machine two wait for each other longer than a small network takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def random_digits(monkeypatch):
    """200 images of noise in MNIST's place, so that a data set costs nothing and needs no files."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (200, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, 200))
    monkeypatch.setattr("stn.experiments.datasets.mnist.load_digits", lambda root, split: (images, labels))
