"""Photographs on disk: random crops and flips for training, the central crop for the test.

A data set of photographs is a `Listing` of its files; `class_folders` makes one from the usual folders.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from stn.experiments.errors import one_line

RESIZED = 256 / 224  # the image's shorter side over the crop's side
TEST_BATCH = 32
LARGEST_PX = 4096  # side of a crop
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
Photo = UInt8[np.ndarray, "h w 3"]
Points = Float[np.ndarray, "p 2"]  # (x, y): in px of a whole image, or in a crop's [-1, 1]


@dataclass(frozen=True)
class Listing:
    """n images: files, names (part of the checksums), labels from 0, and which of them are for training."""

    paths: list[Path]
    names: list[str]
    labels: Int[np.ndarray, " n"]
    train: Bool[np.ndarray, " n"]
    classes: list[str]


def class_folders(folder: Path) -> Listing:
    """The images folder/train/<class>/* and folder/test/<class>/*, classes and images sorted by name.

    Raises FileNotFoundError if there are none, and ValueError if a class is only in test/.
    """
    places = {half: folder / half for half in ("train", "test")}
    found = {
        half: sorted(p for p in place.glob("*/*") if p.suffix.lower() in SUFFIXES) for half, place in places.items()
    }
    for half, paths in found.items():
        if not paths:
            raise FileNotFoundError(f"no images in {places[half]}: put them there as {half}/<class>/<image>.jpg")
    classes = sorted({path.parent.name for path in found["train"]})
    if unknown := sorted({path.parent.name for path in found["test"]} - set(classes)):
        raise ValueError(f"{places['test'] / unknown[0]} is a class without an image in {places['train']}")
    paths = found["train"] + found["test"]
    return Listing(
        paths, [path.relative_to(folder).as_posix() for path in paths],
        np.array([classes.index(path.parent.name) for path in paths]),
        np.arange(len(paths)) < len(found["train"]), classes,
    )  # fmt: skip


def decode(data: bytes) -> Image.Image:
    """The image in the bytes of an image file.  Raises ValueError with the reason if it cannot be read completely."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # on arbitrary bytes, Pillow's decoders may raise anything
        unknown = isinstance(error, UnidentifiedImageError)
        raise ValueError("not an image of a known format" if unknown else one_line(error)) from None
    return image


def load(path: Path) -> Photo:
    """The image as RGB.  Raises ValueError if the file is damaged or cut off."""
    try:
        return np.asarray(decode(path.read_bytes()).convert("RGB"))
    except ValueError as error:
        raise ValueError(f"the image {path} is damaged ({error}): delete it and fetch the data again") from None


class Cropper(threading.local):
    """Resizes the shorter side to 256/224 of the crop's, then takes a random crop and flip, or the central crop.

    Points of the whole image are mapped to the crop, accurate to a pixel, since flips are about pixel centres.  Every
    thread has its own cropper, since albumentations keeps its random state in the pipeline.
    """

    def __init__(self, side_px: int):
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)  # we start the threads: one image each
        resized = A.SmallestMaxSize(round(side_px * RESIZED), interpolation=cv2.INTER_AREA)
        points = A.KeypointParams(format="xy", remove_invisible=False)
        self.random = A.Compose(
            [resized, A.RandomCrop(side_px, side_px), A.HorizontalFlip(p=0.5)], keypoint_params=points
        )
        self.middle = A.Compose([resized, A.CenterCrop(side_px, side_px)], keypoint_params=points)
        self.side_px = side_px

    def train(self, path: Path, seed: int, points: Points) -> tuple[Photo, Points]:
        self.random.set_random_seed(seed)
        return self._cropped(self.random, path, points)

    def test(self, path: Path, points: Points) -> tuple[Photo, Points]:
        return self._cropped(self.middle, path, points)

    def _cropped(self, pipeline: Any, path: Path, points: Points) -> tuple[Photo, Points]:
        crop = pipeline(image=load(path), keypoints=points)
        return crop["image"], 2 * crop["keypoints"] / self.side_px - 1


class Photos:
    """Photographs in crops of size_px / shrink: random ones in a `batch`, central ones in `test_batches`.

    Images are float in [0, 1].  Threads prepare one batch ahead of the network; their number and order do not change a
    bit of it.
    """

    classes: int = 1  # replaced by the number in the listing
    labelled = True
    synthetic = False
    on_device = False
    points: Float[np.ndarray, "n p 2"]  # of every image, in px; cropped with it

    def __init__(self, listing: Listing, size_px: int, shrink: int | float = 1.0):
        self.in_shape = Photos.shape(size_px, shrink)
        self.listing = listing
        self.points = np.zeros((len(listing.paths), 0, 2))
        self.classes = len(listing.classes)
        self.train, self.test = np.flatnonzero(listing.train), np.flatnonzero(~listing.train)
        for half, name in ((self.train, "training"), (self.test, "test")):
            if len(half) == 0:
                raise ValueError(f"{os.path.commonpath(listing.paths)} has no {name} image")
        self.cropper = Cropper(self.in_shape[1])
        self.pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
        self.ahead: tuple[Generator, int, tuple[list[Future], Tensor]] | None = None

    @staticmethod
    def shape(size_px: Any, shrink: Any = 1.0, **settings: Any) -> tuple[int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on invalid values."""
        for key, value, kinds in (("size_px", size_px, (int,)), ("shrink", shrink, (int, float))):
            if type(value) not in kinds:
                raise ValueError(f"data.{key}={value!r} has to be a {'whole ' * (key == 'size_px')}number")
        side_px = round(size_px / shrink) if shrink > 0 and size_px / shrink <= LARGEST_PX else 0
        if side_px < 1:
            raise ValueError(
                f"data.size_px={size_px} / data.shrink={shrink} has to be a side of 1 px or more, up to {LARGEST_PX}"
            )
        return 3, side_px, side_px

    @classmethod
    def ensure(cls, root: str | Path, **settings: Any) -> None:
        """Find all files, as the constructor of a data set does.  Raises OSError or ValueError if some are missing."""
        build: Any = cls  # whose arguments are the config's
        build(root, **settings)

    def to(self, device: torch.device) -> None:
        """Does nothing: the files stay on disk, and `batch` puts each batch on its generator's device."""

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b c s s"], Int[Tensor, " b"]]:
        """n training examples, drawn with replacement, cropped and mirrored at random, on the generator's device."""
        if self.ahead is not None and self.ahead[0] is generator and self.ahead[1] == n:
            photos, label = self.ahead[2]
        else:
            photos, label = self._start(n, generator)
        self.ahead = (generator, n, self._start(n, generator))  # while the network takes its step
        return self.input(*_stacked(photos, generator.device)), label

    def _start(self, n: int, generator: Generator) -> tuple[list[Future], Tensor]:
        draws = torch.randint(2**31 - 1, (2, n), generator=generator, device=generator.device)
        index = self.train[(draws[0] % len(self.train)).cpu().numpy()]
        seeds = draws[1].tolist()
        photos = [
            self.pool.submit(lambda i, seed: self.cropper.train(self.listing.paths[i], seed, self.points[i]), i, seed)
            for i, seed in zip(index, seeds, strict=True)
        ]
        return photos, torch.from_numpy(self.listing.labels[index]).to(generator.device)

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b c s s"], Any]]:
        """The test set in order, each batch with its `target`."""
        following: list[Future] = []
        for start in [*range(0, len(self.test), TEST_BATCH), len(self.test)]:
            running, following = following, [
                self.pool.submit(lambda i: self.cropper.test(self.listing.paths[i], self.points[i]), i)
                for i in self.test[start : start + TEST_BATCH]
            ]  # fmt: skip
            if running:
                u, points = _stacked(running, torch.device("cpu"))
                yield self.input(u, points), self.target(slice(start - len(running), start), points)

    def input(self, u: Float[Tensor, "b 3 s s"], points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b c s s"]:
        """The network's input for these crops and their points: the crops."""
        return u

    def target(self, part: slice, points: Float[Tensor, "b p 2"]) -> Any:
        """The test target for this part of the test set, whose crops have these points."""
        return torch.from_numpy(self.listing.labels[self.test[part]])

    def checksums(self) -> dict[str, str]:
        """sha256 over names, labels and bytes of the training and of the test images, for the record."""
        sums = {}
        for name, half in (("train", self.train), ("test", self.test)):
            digest = hashlib.sha256()
            for i in half:
                digest.update(f"{self.listing.names[i]} {self.listing.labels[i]} ".encode())
                digest.update(self.listing.paths[i].read_bytes())
            sums[name] = digest.hexdigest()
        return sums


def _stacked(futures: list[Future], device: torch.device) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b p 2"]]:
    photos, points = zip(*(future.result() for future in futures), strict=True)
    u = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)  # channels last in memory, as the network's weights
    return u.to(device).float() / 255, torch.from_numpy(np.stack(points)).float().to(device)  # bytes travel, not floats
