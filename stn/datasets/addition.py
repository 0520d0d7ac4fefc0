"""MNIST addition (A.1): two distorted digits, each in a channel of its own, and their sum as the label."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils.data import DataLoader, TensorDataset

from stn.datasets.distortions import DISTORTIONS, distort, frozen
from stn.datasets.mnist import TEST_SEED, load_digits

CHANNELS = 2


class MnistAddition:
    """Pairs of digits, distorted independently: u (B, 2, S, S), label the sum 0..18; `test` is the frozen test set.

    A training pair is drawn afresh from the training digits.  The test set shows every test digit once in each channel:
    the first channel in MNIST's order, the second in a random one.  Everything lives on one device (`to`), as uint8.
    """

    classes = 19
    made = False

    def __init__(self, root: str | Path, distortion: str):
        if distortion not in DISTORTIONS:
            raise ValueError(f"unknown data.distortion={distortion!r}: choose one of {', '.join(DISTORTIONS)}")
        self.distortion = distortion
        canvas_px = DISTORTIONS[distortion].canvas_px
        self.in_shape = (CHANNELS, canvas_px, canvas_px)
        self.digits, self.labels = load_digits(root, "train")
        digits, labels = load_digits(root, "t10k")
        n = len(digits)
        pairs = torch.stack([torch.arange(n), torch.randperm(n, generator=Generator().manual_seed(TEST_SEED))])
        images = frozen(distortion, digits[pairs.flatten()], TEST_SEED).unflatten(0, (CHANNELS, n)).transpose(0, 1)
        self.test = TensorDataset(images.contiguous(), labels[pairs].sum(0))

    def to(self, device: torch.device) -> None:
        """Move the training digits to `device`."""
        self.digits, self.labels = self.digits.to(device), self.labels.to(device)

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 2 s s"], Int[Tensor, " b"]]:
        """n training pairs of digits drawn with replacement and freshly distorted, on the generator's device."""
        index = torch.randint(len(self.digits), (n, CHANNELS), generator=generator, device=generator.device)
        images = distort(self.distortion, self.digits, index.flatten(), generator)
        return images.view(n, *self.in_shape), self.labels[index].sum(1)

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 2 s s"], Int[Tensor, " b"]]]:
        """The frozen test set, 1000 at a time."""
        for images, labels in DataLoader(self.test, batch_size=1000):
            yield images.float() / 255, labels

    def checksums(self) -> dict[str, str]:
        """sha256 of the training digits and of the frozen test images, for the record."""
        return {
            "train": hashlib.sha256(self.digits.cpu().numpy().tobytes()).hexdigest(),
            "test": hashlib.sha256(self.test.tensors[0].numpy().tobytes()).hexdigest(),
        }
