"""Distorted MNIST (Sect. 4.1): digits in memory, new distortions for every training batch, one frozen test set."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.utils.data import DataLoader, TensorDataset

from stn.experiments.datasets.distortions import Distortion, build, frozen
from stn.experiments.datasets.fetch import fetch

REVISION = 1  # raise it when a change alters an image, a label or how they are drawn
TEST_SEED = 20150605  # of the frozen test sets: the day of the paper's first version
VALID, VALID_SEED = 5000, 20150605  # training digits for choosing settings
Digits = tuple[UInt8[Tensor, "_ 28 28"], Int[Tensor, " _"]]


def load_digits(root: str | Path, split: str) -> Digits:
    """The images and labels of MNIST's `split`, train (60,000) or t10k (10,000), fetched if needed and checked."""
    from torchvision.datasets.mnist import read_image_file, read_label_file  # takes a second to load

    paths = fetch("mnist", Path(root))
    return (
        read_image_file(str(paths[f"{split}-images-idx3-ubyte"])),
        read_label_file(str(paths[f"{split}-labels-idx1-ubyte"])),
    )


def split_digits(root: str | Path, test_split: str) -> tuple[Digits, Digits]:
    """The digits for training and those for testing, each as images and labels.

    With `test_split` "test" these are the 60,000 training digits and the 10,000 test digits.  With "valid" a fixed
    5,000 of the training digits replace the test set, and the other 55,000 are for training.
    """
    check_split(test_split)
    images, labels = load_digits(root, "train")
    if test_split == "test":
        return (images, labels), load_digits(root, "t10k")
    order = torch.randperm(len(images), generator=Generator().manual_seed(VALID_SEED))
    valid, train = order[:VALID], order[VALID:]
    return (images[train], labels[train]), (images[valid], labels[valid])


def check_split(test_split: Any) -> None:
    """Raise ValueError unless it is "test" or "valid"."""
    if not isinstance(test_split, str) or test_split not in ("test", "valid"):
        raise ValueError(f"unknown data.test_split={test_split!r}: choose test or valid")


def checksum(*tensors: Tensor) -> str:
    """The sha256 of the values of these tensors, in order, in hexadecimal."""
    return hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)).hexdigest()


class DistortedMnist:
    """MNIST under one distortion: `batch` draws new training examples, `test` is the frozen test set.

    `distortion` is an object, or a config for `distortions.build`; `test_split` is that of `split_digits`.  All data
    are uint8 on one device (`to`).  `in_shape` is (1, S, S), `classes` 10.
    """

    classes = 10
    labelled = True
    synthetic = False
    on_device = True

    def __init__(self, root: str | Path, distortion: Mapping[str, Any] | Distortion | str, test_split: str = "test"):
        self.in_shape = self.shape(distortion, test_split)
        self.distortion = build(distortion)
        (self.digits, self.labels), (test_digits, test_labels) = split_digits(root, test_split)
        self.test = TensorDataset(frozen(self.distortion, test_digits, TEST_SEED)[:, None], test_labels)

    @staticmethod
    def shape(distortion: Any, test_split: Any = "test") -> tuple[int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on invalid values."""
        check_split(test_split)
        side_px = build(distortion).canvas_px
        return 1, side_px, side_px

    @staticmethod
    def ensure(root: str | Path, **settings: Any) -> None:
        """Fetch and check the files.  Raises OSError if that fails."""
        fetch("mnist", Path(root))

    def to(self, device: torch.device) -> None:
        """Move the training digits to `device`."""
        self.digits, self.labels = self.digits.to(device), self.labels.to(device)

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 1 s s"], Int[Tensor, " b"]]:
        """n training examples, drawn with replacement and newly distorted, on the generator's device."""
        index = torch.randint(len(self.digits), (n,), generator=generator, device=generator.device)
        return self.distortion.apply(self.digits, index, generator), self.labels[index]

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 1 s s"], Int[Tensor, " b"]]]:
        """The frozen test set, 1000 at a time."""
        for images, labels in DataLoader(self.test, batch_size=1000):
            yield images.float() / 255, labels

    def checksums(self) -> dict[str, str]:
        """sha256 of the training digits and of the frozen test images, for the record."""
        return {"train": checksum(self.digits), "test": checksum(self.test.tensors[0])}
