"""What several test files share."""

import numpy as np
import pytest
import torch


@pytest.fixture
def random_digits(monkeypatch):
    """1,500 images of noise in MNIST's place, so that a data set costs nothing and needs no files."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (1500, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, 1500))
    monkeypatch.setattr("stn.datasets.mnist.load_digits", lambda root, split: (images, labels))
