"""Co-localisation (A.2): images of one unknown digit class at unknown positions, with or without clutter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from stn.experiments.datasets import DIGIT_PX
from stn.experiments.datasets.clutter import Clutter
from stn.experiments.datasets.mnist import DistortedMnist, checksum, load_digits
from stn.experiments.rules import below, require, whole

REVISION = 1  # raise it when a change alters an image, a label or how they are drawn
CANVAS_PX = 84
PATCH_PX = 6  # side of a crop of clutter
Boxes = Float[Tensor, "b 4"]  # left, top, right, bottom in px of the canvas


def squares(place: Int[Tensor, "b 2"]) -> Boxes:
    """The 28 x 28 squares of the digits, from the positions (x, y) of their top left corners."""
    return torch.cat([place, place + DIGIT_PX], dim=1).float()


def ink(digits: UInt8[Tensor, "b 28 28"], place: Int[Tensor, "b 2"]) -> Boxes:
    """The bounding boxes of the digits' ink, that is of all pixels above 0."""
    sides = []
    for inked in (digits.amax(1) > 0, digits.amax(2) > 0):  # columns, then rows
        flags = inked.to(torch.uint8)
        sides.append((flags.argmax(1), DIGIT_PX - flags.flip(1).argmax(1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float() + place.repeat(1, 2)


def shifted(images: UInt8[Tensor, "b 1 s s"], by_px: Int[Tensor, "b 2"]) -> UInt8[Tensor, "b 1 s s"]:
    """Each image moved right and down by (x, y), filled with black."""
    side = images.shape[-1]
    from_px = torch.arange(side, device=images.device) - by_px[..., None]  # (b, 2, s)
    inside = (from_px >= 0) & (from_px < side)
    column, row = from_px.clamp(0, side - 1).unbind(1)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images[image, 0, row[:, :, None], column[:, None, :]]
    return (moved * (inside[:, 1, :, None] & inside[:, 0, None, :]))[:, None]


class CommonDigit:
    """`images` training digits of class `digit`, each uniformly placed on an 84 x 84 canvas, drawn once from `seed`.

    `patches` 6 x 6 crops of other training digits are added: none for T, 16 for TC.  Training sees neither a class nor
    a box.  `batch` returns the images, each shifted by N(0, shift_std_px) in x and in y.  `crops` returns I^rand:
    `random_crops` crops of 28 x 28 px per image at uniform positions, drawn once.  `test_batches` returns the unshifted
    images with their boxes: the digit's 28 x 28 square (`box` "square") or the bounding box of its ink ("ink").
    """

    classes = 1  # unknown, but common to all images
    labelled = False
    synthetic = False
    on_device = True
    in_shape = (1, CANVAS_PX, CANVAS_PX)

    def __init__(
        self,
        root: str | Path,
        digit: int,
        patches: int,
        images: int,
        random_crops: int,
        shift_std_px: float,
        box: str,
        seed: int,
    ):
        self.shape(digit, patches, images, random_crops, shift_std_px, box, seed)
        digits, labels = load_digits(root, "train")
        (mine,) = (labels == digit).nonzero(as_tuple=True)
        if images > len(mine):
            raise ValueError(
                f"data.images={images} is too many: MNIST has {len(mine)} training digits of class {digit}"
            )
        generator = Generator().manual_seed(seed)
        index = mine[torch.randperm(len(mine), generator=generator)[:images]]
        self.shift_std_px = shift_std_px
        clutter = Clutter(CANVAS_PX, patches, PATCH_PX)
        params = clutter.draw(images, generator, len(digits))
        self.images = clutter.compose(digits, index, params)[:, None]
        self.boxes = squares(params["place"]) if box == "square" else ink(digits[index], params["place"])
        room = CANVAS_PX - DIGIT_PX + 1
        self.places = torch.randint(room, (images, random_crops, 2), generator=generator)  # left, top in px

    @classmethod
    def shape(
        cls, digit: Any, patches: Any, images: Any, random_crops: Any, shift_std_px: Any, box: Any, seed: Any
    ) -> tuple[int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on invalid values."""
        if type(digit) is not int or not 0 <= digit <= 9:
            raise ValueError(f"data.digit={digit!r} is not a digit class: choose one of 0 to 9")
        for key, value, least, most in (
            ("patches", patches, 0, 1000), ("images", images, 2, 60_000), ("random_crops", random_crops, 1, 1000),
            ("seed", seed, 0, 2**32 - 1),
        ):  # fmt: skip
            require(whole(least, most), f"data.{key}", value)
        require(below(CANVAS_PX), "data.shift_std_px", shift_std_px)
        if not isinstance(box, str) or box not in ("square", "ink"):
            raise ValueError(f"unknown data.box={box!r}: choose square or ink")
        return cls.in_shape

    ensure = staticmethod(DistortedMnist.ensure)

    def to(self, device: torch.device) -> None:
        """Move the images to `device`."""
        self.images = self.images.to(device)

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 1 s s"], Int[Tensor, " b"]]:
        """n of the images, each shifted, and their indices; all in order if n is their number, as in A.2."""
        if n > len(self.images):
            raise ValueError(f"schedule.batch_size={n} is larger than data.images={len(self.images)}: lower it")
        shift = torch.randn(n, 2, generator=generator, device=generator.device)
        if n == len(self.images):
            index, images = torch.arange(n, device=shift.device), self.images
        else:
            index = torch.randperm(len(self.images), generator=generator, device=shift.device)[:n]
            images = self.images[index]
        return shifted(images, (self.shift_std_px * shift).round().long()).float() / 255, index

    def crops(self) -> Iterator[Float[Tensor, "b 1 28 28"]]:
        """I^rand: the first random crop of every image, then the second, and so on."""
        windows = self.images.unfold(2, DIGIT_PX, 1).unfold(3, DIGIT_PX, 1)
        for left, top in self.places.permute(1, 2, 0):
            yield windows[torch.arange(len(windows)), :, top, left].float() / 255

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 1 s s"], Boxes]]:
        """All images, unshifted, with their boxes."""
        yield self.images.cpu().float() / 255, self.boxes

    def checksums(self) -> dict[str, str]:
        """sha256 of the images and of their boxes, for the record."""
        return {"train": checksum(self.images), "test": checksum(self.boxes)}
