"""CUB-200-2011 (Sect. 4.3) and made birds: photographs, cropped and mirrored afresh for training (albumentations)."""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Generator, Tensor

from stn.datasets import made_birds
from stn.datasets.cub_files import fetch_cub, read

DATASETS = ("cub", "made_birds")
RESIZED = 256 / 224  # the image's shorter side in sides of the crop
GROUPS = {  # of CUB's 15 parts; where a group is: the middle of those of its parts that are visible
    "head": ("beak", "crown", "forehead", "left eye", "right eye", "throat"),
    "body": ("back", "belly", "breast"),
}
TEST_BATCH = 32
Photo = UInt8[np.ndarray, "h w 3"]


def load(path: Path) -> Photo:
    """The whole image as RGB.  Raises ValueError, in one line, where its bytes are damaged or cut off."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # what Pillow raises on half an image
        raise ValueError(f"the image {path} is damaged ({error}): delete its folder and run `make data-cub`") from None


class Crops(threading.local):
    """Shorter side to 256/224 of the crop's, then a random crop and flip, or the crop in the middle.

    One of its own per thread, since albumentations keeps its random state in the pipeline.
    """

    def __init__(self, side_px: int):
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)  # the threads are ours: one image each
        resized = A.SmallestMaxSize(round(side_px * RESIZED), interpolation=cv2.INTER_AREA)
        self.random = A.Compose([resized, A.RandomCrop(side_px, side_px), A.HorizontalFlip(p=0.5)])
        self.middle = A.Compose([resized, A.CenterCrop(side_px, side_px)])

    def train(self, path: Path, seed: int) -> Photo:
        self.random.set_random_seed(seed)
        return self.random(image=load(path))["image"]

    def test(self, path: Path) -> tuple[Photo, tuple[int, int]]:
        """The crop, and (width, height) of the whole image."""
        image = load(path)
        return self.middle(image=image)["image"], (image.shape[1], image.shape[0])


class Birds:
    """Birds in crops of size_px / shrink: `batch` draws training examples, `test_batches` the crops in the middle.

    `dataset` is cub, or made_birds: drawn ones in the same format, made on first use.  `excluded` is a file with one
    image a line, named as in images.txt (the test images that ImageNet has, too): the test target says which those
    are.  Images are float in [0, 1]; one batch ahead of the network is prepared by threads, and neither their number
    nor their order changes a bit of it.
    """

    def __init__(
        self, root: str | Path, dataset: str, size_px: int, shrink: float = 1.0, excluded: str | Path | None = None
    ):
        if dataset not in DATASETS:
            raise ValueError(f"unknown data.dataset={dataset!r}: choose one of {', '.join(DATASETS)}")
        side_px = round(size_px / shrink)
        self.made = dataset == "made_birds"
        folder = made_birds.write(Path(root) / "made_birds") if self.made else fetch_cub(Path(root))
        self.listing = read(folder)
        self.classes = len(self.listing.classes)
        self.in_shape = (3, side_px, side_px)
        self.train, self.test = (np.flatnonzero(self.listing.train == half) for half in (True, False))
        for half, name in ((self.train, "training"), (self.test, "test")):
            if len(half) == 0:
                raise ValueError(f"{folder / 'train_test_split.txt'} leaves no {name} image")
        self.kept = ~np.isin(self.listing.names, self._excluded(excluded))[self.test]
        self.crops = Crops(side_px)
        self.pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
        self.ahead: tuple[Generator, int, tuple[list[Future], Tensor]] | None = None

    def _excluded(self, path: str | Path | None) -> list[str]:
        if path is None:
            return []
        names = Path(path).read_text().split()
        if unknown := sorted(set(names) - {self.listing.names[i] for i in self.test}):
            raise ValueError(f"{path}: {unknown[0]!r} is no test image; one image a line, named as in images.txt")
        return names

    def to(self, device: torch.device) -> None:
        """Nothing: the files stay on the disk, and `batch` puts each batch on its generator's device."""

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 3 s s"], Int[Tensor, " b"]]:
        """n training examples, drawn with replacement, cropped and mirrored at random, on the generator's device."""
        if self.ahead is not None and self.ahead[0] is generator and self.ahead[1] == n:
            photos, label = self.ahead[2]
        else:
            photos, label = self._start(n, generator)
        self.ahead = (generator, n, self._start(n, generator))  # while the network takes its step
        u = torch.from_numpy(np.stack([photo.result() for photo in photos]))
        return _to_unit(u.to(generator.device)), label

    def _start(self, n: int, generator: Generator) -> tuple[list[Future], Tensor]:
        draws = torch.randint(2**31 - 1, (2, n), generator=generator, device=generator.device)
        index = self.train[(draws[0] % len(self.train)).cpu().numpy()]
        seeds = draws[1].tolist()
        photos = [
            self.pool.submit(lambda i, seed: self.crops.train(self.listing.paths[i], seed), i, seed)
            for i, seed in zip(index, seeds, strict=True)
        ]
        return photos, torch.from_numpy(self.listing.labels[index]).to(generator.device)

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 3 s s"], dict[str, Tensor]]]:
        """The test set; beside the label what `stn.training.birds` measures, each with its weight.

        `parts` (B, P, 2) is where the groups of parts are, in the crop's [-1, 1]; a weight is 0 where an image does not
        count and averages 1 over the test set, so that the mean of weight x value is the mean over those that do.
        """
        starts = range(0, len(self.test), TEST_BATCH)
        weights = {"kept": _weights(self.kept), "seen": _weights(self._seen()[self.test])}
        following: list[Future] = []
        for start in [*starts, None]:
            running, following = following, []
            if start is not None:
                index = self.test[start : start + TEST_BATCH]
                following = [self.pool.submit(lambda i: self.crops.test(self.listing.paths[i]), i) for i in index]
            if running:
                yield self._target(running, start, weights)

    def _target(self, running: list[Future], after: int | None, weights: dict[str, Tensor]) -> Any:
        last = len(self.test) if after is None else after
        part = slice(last - len(running), last)
        photos, sizes = zip(*(future.result() for future in running), strict=True)
        index = self.test[part]
        return _to_unit(torch.from_numpy(np.stack(photos))), {
            "label": torch.from_numpy(self.listing.labels[index]),
            "parts": torch.from_numpy(self.places(index, np.array(sizes))).float(),
            **{name: weight[part] for name, weight in weights.items()},
        }

    def _members(self) -> list[list[int]]:
        return [[i for i, name in enumerate(self.listing.part_names) if name in group] for group in GROUPS.values()]

    def _seen(self) -> np.ndarray:
        """Whether any part of each group is visible: (n, groups)."""
        return np.stack([self.listing.parts[:, members, 2].any(1) for members in self._members()], axis=1)

    def places(self, index: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Where the groups of parts are in the middle crop of these images, given their (width, height): (n, g, 2)."""
        side = self.in_shape[-1]
        resized = np.round(sizes * (round(side * RESIZED) / sizes.min(1, keepdims=True)))
        corner = (resized - side) // 2
        groups = []
        for members in self._members():
            xy, seen = self.listing.parts[index][:, members, :2], self.listing.parts[index][:, members, 2:]
            middle = (xy * seen).sum(1) / seen.sum(1).clip(1)
            groups.append(2 * (middle * resized / sizes - corner) / side - 1)
        return np.stack(groups, axis=1)

    def checksums(self) -> dict[str, str]:
        """sha256 over names, labels and bytes of the images of each half, for the record."""
        sums = {}
        for name, half in (("train", self.train), ("test", self.test)):
            digest = hashlib.sha256()
            for i in half:
                digest.update(f"{self.listing.names[i]} {self.listing.labels[i]} ".encode())
                digest.update(self.listing.paths[i].read_bytes())
            sums[name] = digest.hexdigest()
        return sums


def _to_unit(u: UInt8[Tensor, "b s s 3"]) -> Float[Tensor, "b 3 s s"]:
    return u.permute(0, 3, 1, 2).float() / 255  # channels last in memory, as the network's weights


def _weights(counts: np.ndarray) -> Tensor:
    """1 over the share of images that count, 0 for the others; along the first axis."""
    return torch.from_numpy(counts / np.maximum(counts.mean(0), 1e-9)).float()
