"""Co-localisation (A.2): images of one unknown digit class at unknown places, with or without clutter."""

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

REVISION = 2  # raise it when a change alters an image, a label or how they are drawn
CANVAS_PX = 84
PATCH_PX = 6  # side of a crop of clutter
Boxes = Float[Tensor, "b 4"]  # left, top, right, bottom in px of the canvas


def squares(place: Int[Tensor, "b 2"]) -> Boxes:
    """The 28 x 28 squares that the digits fill, from the places (x, y) of their top left corners."""
    return torch.cat([place, place + DIGIT_PX], dim=1).float()


def ink(digits: UInt8[Tensor, "b 28 28"], place: Int[Tensor, "b 2"]) -> Boxes:
    """The smallest boxes that hold all of a digit's ink, every pixel above 0."""
    sides = []
    for inked in (digits.amax(1) > 0, digits.amax(2) > 0):  # columns, then rows
        flags = inked.to(torch.uint8)
        sides.append((flags.argmax(1), DIGIT_PX - flags.flip(1).argmax(1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float() + place.repeat(1, 2)


def shifted(images: UInt8[Tensor, "b 1 s s"], by_px: Int[Tensor, "b 2"]) -> UInt8[Tensor, "b 1 s s"]:
    """Each image moved right and down by (x, y); what comes in is black."""
    side = images.shape[-1]
    from_px = torch.arange(side, device=images.device) - by_px[..., None]  # (b, 2, s)
    inside = (from_px >= 0) & (from_px < side)
    column, row = from_px.clamp(0, side - 1).unbind(1)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images[image, 0, row[:, :, None], column[:, None, :]]
    return (moved * (inside[:, 1, :, None] & inside[:, 0, None, :]))[:, None]


class CommonDigit:
    """`images` training digits of class `digit`, each at a uniform place of an 84 x 84 canvas, drawn once from `seed`.

    `patches` 6 x 6 crops of other training digits are added: none for T, 16 for TC.  `batch` gives the images, each
    shifted by N(0, shift_std_px) in x and in y, and I^rand, 28 x 28 px of each at a uniform place; neither a class nor
    a box.  `test_batches` gives the images as they are with their boxes, the digit's 28 x 28 square (`box` "square") or
    the bounding box of its ink ("ink"), which the network has not seen.
    """

    classes = 1  # unknown, but common to all images
    synthetic = False
    on_device = True
    in_shape = (1, CANVAS_PX, CANVAS_PX)

    def __init__(
        self,
        root: str | Path,
        digit: int,
        patches: int,
        images: int,
        shift_std_px: float,
        box: str,
        seed: int,
    ):
        self.shape(digit, patches, images, shift_std_px, box, seed)
        digits, labels = load_digits(root, "train")
        (mine,) = (labels == digit).nonzero(as_tuple=True)
        if images > len(mine):
            raise ValueError(
                f"data.images={images}: MNIST has {len(mine)} training digits of class {digit}, take fewer"
            )
        generator = Generator().manual_seed(seed)
        index = mine[torch.randperm(len(mine), generator=generator)[:images]]
        self.shift_std_px = shift_std_px
        clutter = Clutter(CANVAS_PX, patches, PATCH_PX)
        params = clutter.draw(images, generator, len(digits))
        self.images = clutter.compose(digits, index, params)[:, None]
        self.boxes = squares(params["place"]) if box == "square" else ink(digits[index], params["place"])

    @classmethod
    def shape(
        cls, digit: Any, patches: Any, images: Any, shift_std_px: Any, box: Any, seed: Any
    ) -> tuple[int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on values that there are no images for."""
        if type(digit) is not int or not 0 <= digit <= 9:
            raise ValueError(f"data.digit={digit!r} is no digit class: choose one of 0 to 9")
        for key, value, least, most in (
            ("patches", patches, 0, 1000), ("images", images, 2, 60_000), ("seed", seed, 0, 2**32 - 1),
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

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 1 s s"], Float[Tensor, "b 1 28 28"]]:
        """n of the images, each shifted, and a random crop of each; all of them where n is their number, as in A.2."""
        if n > len(self.images):
            raise ValueError(f"schedule.batch_size={n}: there are data.images={len(self.images)}, take at most so many")
        device = generator.device
        shift = torch.randn(n, 2, generator=generator, device=device)
        index = torch.randperm(len(self.images), generator=generator, device=device)[:n]
        u = shifted(self.images[index], (self.shift_std_px * shift).round().long())
        left, top = torch.randint(CANVAS_PX - DIGIT_PX + 1, (2, n), generator=generator, device=device)
        windows = u.unfold(2, DIGIT_PX, 1).unfold(3, DIGIT_PX, 1)
        crops = windows[torch.arange(n, device=device), :, top, left]
        return u.float() / 255, crops.float() / 255

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 1 s s"], Boxes]]:
        """All images with their boxes."""
        yield self.images.cpu().float() / 255, self.boxes

    def checksums(self) -> dict[str, str]:
        """sha256 of the images and of their boxes, for the record."""
        return {"train": checksum(self.images), "test": checksum(self.boxes)}
