"""MNIST addition (A.1): two distorted digits, each in its own channel, and their sum as the label."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils.data import DataLoader, TensorDataset

from stn.experiments.datasets.distortions import Distortion, Params, build, frozen, frozen_params
from stn.experiments.datasets.mnist import TEST_SEED, DistortedMnist, checksum, split_digits

REVISION = 1  # raise it when a change alters an image, a label or how they are drawn
CHANNELS = 2


class MnistAddition:
    """Pairs of digits, distorted independently: u (B, 2, S, S), label the sum 0..18; `test` is the frozen test set.

    Training pairs are drawn at random from the training digits.  The test set shows every test digit once in each
    channel, in the first in MNIST's order, in the second in a random one.  All data are uint8 on one device (`to`).
    """

    classes = 19
    labelled = True
    synthetic = False
    on_device = True

    def __init__(self, root: str | Path, distortion: Mapping[str, Any] | Distortion | str, test_split: str = "test"):
        self.in_shape = self.shape(distortion, test_split)
        self.distortion = build(distortion)
        (self.digits, self.labels), (digits, labels) = split_digits(root, test_split)
        n = len(digits)
        pairs = torch.stack([torch.arange(n), torch.randperm(n, generator=Generator().manual_seed(TEST_SEED))])
        images = frozen(self.distortion, digits[pairs.flatten()], TEST_SEED).unflatten(0, (CHANNELS, n))
        self.test = TensorDataset(images.transpose(0, 1).contiguous(), labels[pairs].sum(0))

    @staticmethod
    def shape(distortion: Any, test_split: Any = "test") -> tuple[int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on invalid values."""
        return CHANNELS, *DistortedMnist.shape(distortion, test_split)[1:]

    ensure = staticmethod(DistortedMnist.ensure)

    def test_params(self) -> list[Params]:
        """The parameters that a geometric distortion drew for the test digits, by channel, in the order of `test`."""
        n = len(self.test)
        both = frozen_params(self.distortion, CHANNELS * n, TEST_SEED)
        return [{key: value[c * n : (c + 1) * n] for key, value in both.items()} for c in range(CHANNELS)]

    def to(self, device: torch.device) -> None:
        """Move the training digits to `device`."""
        self.digits, self.labels = self.digits.to(device), self.labels.to(device)

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 2 s s"], Int[Tensor, " b"]]:
        """n training pairs of digits drawn with replacement and freshly distorted, on the generator's device."""
        index = torch.randint(len(self.digits), (n, CHANNELS), generator=generator, device=generator.device)
        images = self.distortion.apply(self.digits, index.flatten(), generator)
        return images.view(n, *self.in_shape), self.labels[index].sum(1)

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 2 s s"], Int[Tensor, " b"]]]:
        """The frozen test set, 1000 at a time."""
        for images, labels in DataLoader(self.test, batch_size=1000):
            yield images.float() / 255, labels

    def checksums(self) -> dict[str, str]:
        """sha256 of the training digits and of the frozen test images, for the record."""
        return {"train": checksum(self.digits), "test": checksum(self.test.tensors[0])}
