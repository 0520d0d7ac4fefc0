"""Distorted MNIST (Sect. 4.1): digits in memory, fresh distortions for training, one frozen distorted test set."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets.mnist import read_image_file, read_label_file

from stn.datasets.distortions import DISTORTIONS, distort, frozen
from stn.datasets.fetch import fetch

TEST_SEED = 20150605  # of the frozen test sets: the day of the paper's first version


def load_digits(root: str | Path, split: str) -> tuple[UInt8[Tensor, "d 28 28"], Int[Tensor, " d"]]:
    """The images and labels of MNIST's `split`, train (60,000) or t10k (10,000), fetched and checked first."""
    paths = fetch("mnist", Path(root))
    return (
        read_image_file(str(paths[f"{split}-images-idx3-ubyte"])),
        read_label_file(str(paths[f"{split}-labels-idx1-ubyte"])),
    )


class DistortedMnist:
    """MNIST under one distortion: `batch` draws fresh training examples, `test` is the frozen test set.

    Everything lives on one device (`to`), the digits as uint8.  `in_shape` is (1, S, S), `classes` 10.
    """

    classes = 10
    made = False

    def __init__(self, root: str | Path, distortion: str):
        if distortion not in DISTORTIONS:
            raise ValueError(f"unknown data.distortion={distortion!r}: choose one of {', '.join(DISTORTIONS)}")
        self.distortion = distortion
        canvas_px = DISTORTIONS[distortion].canvas_px
        self.in_shape = (1, canvas_px, canvas_px)
        self.digits, self.labels = load_digits(root, "train")
        test_digits, test_labels = load_digits(root, "t10k")
        self.test = TensorDataset(frozen(distortion, test_digits, TEST_SEED)[:, None], test_labels)

    def to(self, device: torch.device) -> None:
        """Move the training digits to `device`."""
        self.digits, self.labels = self.digits.to(device), self.labels.to(device)

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 1 s s"], Int[Tensor, " b"]]:
        """n training examples, drawn with replacement and freshly distorted, on the generator's device."""
        index = torch.randint(len(self.digits), (n,), generator=generator, device=generator.device)
        return distort(self.distortion, self.digits, index, generator), self.labels[index]

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 1 s s"], Int[Tensor, " b"]]]:
        """The frozen test set, 1000 at a time."""
        for images, labels in DataLoader(self.test, batch_size=1000):
            yield images.float() / 255, labels

    def checksums(self) -> dict[str, str]:
        """sha256 of the training digits and of the frozen test images, for the record."""
        return {
            "train": hashlib.sha256(self.digits.cpu().numpy().tobytes()).hexdigest(),
            "test": hashlib.sha256(self.test.tensors[0].numpy().tobytes()).hexdigest(),
        }
