"""Translated and cluttered digits, TC (A.4): all positions are whole pixels, so nothing is interpolated."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from stn.experiments.datasets import DIGIT_PX

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Clutter:
    """TC: the digit at a uniformly random whole-pixel position, plus `patches` random crops of other digits.

    `overlap` says what a pixel shows where they overlap: the `maximum`, the `sum` clipped to 255, or the last crop
    (`overwrite`).  A crop is any patch_px x patch_px window of a digit, so many are partly or entirely black.  Without
    `blank` every crop has ink.
    """

    canvas_px: int
    patches: int
    patch_px: int
    overlap: Literal["maximum", "sum", "overwrite"] = "maximum"
    blank: bool = True

    def draw(self, n: int, generator: Generator, num_digits: int) -> Params:
        """place (n, 2) of the digit; patch_digit (n, K); patch_crop and patch_place (n, K, 2); x then y, in px."""

        def whole(high: int, *shape: int) -> Tensor:
            return torch.randint(high, (n, *shape), generator=generator, device=generator.device)

        return {
            "place": whole(self.canvas_px - DIGIT_PX + 1, 2),
            "patch_digit": whole(num_digits - 1, self.patches),
            "patch_crop": whole(DIGIT_PX - self.patch_px + 1, self.patches, 2),
            "patch_place": whole(self.canvas_px - self.patch_px + 1, self.patches, 2),
        }

    def compose(
        self, digits: UInt8[Tensor, "d 28 28"], index: Int[Tensor, " b"], params: Params
    ) -> UInt8[Tensor, "b s s"]:
        """The canvases of digits[index]; patch_digit is an offset from `index`, so no digit is its own clutter."""
        n, flat = len(index), digits.flatten(1)
        canvas = digits.new_zeros(n, self.canvas_px**2)
        window = _window(DIGIT_PX, self.canvas_px, digits.device)
        canvas.scatter_(1, _offset(params["place"], self.canvas_px) + window, flat[index])
        inside = _window(self.patch_px, DIGIT_PX, digits.device)
        crop = flat[_other(index, params, digits)[..., None], _offset(params["patch_crop"], DIGIT_PX) + inside]
        onto = _offset(params["patch_place"], self.canvas_px) + _window(self.patch_px, self.canvas_px, digits.device)
        return self._merge(canvas, onto, crop).unflatten(1, (self.canvas_px, self.canvas_px))

    def _merge(
        self, canvas: UInt8[Tensor, "b s2"], onto: Int[Tensor, "b k p2"], crop: UInt8[Tensor, "b k p2"]
    ) -> UInt8[Tensor, "b s2"]:
        if self.overlap == "maximum":
            return canvas.scatter_reduce_(1, onto.flatten(1), crop.flatten(1), reduce="amax")
        if self.overlap == "sum":
            whole = canvas.int().scatter_add_(1, onto.flatten(1), crop.flatten(1).int())
            return whole.clamp_(max=255).to(canvas.dtype)
        for k in range(self.patches):  # in order: which of two values a scatter keeps is undefined
            canvas.scatter_(1, onto[:, k], crop[:, k])
        return canvas

    def apply(
        self,
        digits: UInt8[Tensor, "d 28 28"],
        index: Int[Tensor, " b"],
        generator: Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b 1 s s"]:
        """digits[index], each on a canvas with fresh clutter, in [0, 1]."""
        params = self.draw(len(index), generator, len(digits))
        if not self.blank:
            params["patch_crop"] = self._inked_crop(digits[_other(index, params, digits)], generator)
        return self.compose(digits, index, params)[:, None].to(dtype) / 255

    def _inked_crop(self, others: UInt8[Tensor, "b k 28 28"], generator: Generator) -> Int[Tensor, "b k 2"]:
        """For each digit the position of one of its windows with ink, uniformly at random."""
        inked: Bool[Tensor, "b k n n"] = F.max_pool2d(others.float(), self.patch_px, 1) > 0
        flat = inked.flatten(2)
        chance = 1 - torch.rand(flat.shape, generator=generator, device=flat.device)  # above 0
        chosen = (chance * flat).argmax(2)
        return torch.stack([chosen % inked.shape[3], chosen // inked.shape[3]], dim=2)


def _other(index: Int[Tensor, " b"], params: Params, digits: Tensor) -> Int[Tensor, "b k"]:
    """The digits that the clutter of digits[index] is cropped from."""
    return (index[:, None] + 1 + params["patch_digit"]) % len(digits)


def _window(side: int, stride: int, device: torch.device) -> Tensor:
    """Flat indices of a side x side window at the top left of an image whose rows are `stride` long."""
    line = torch.arange(side, device=device)
    return (line[:, None] * stride + line).flatten()


def _offset(corner: Tensor, stride: int) -> Tensor:
    return (corner[..., 1] * stride + corner[..., 0])[..., None]
