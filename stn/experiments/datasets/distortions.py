"""The distortions of Sect. 4.1 and A.4 by name, as batched tensor code on the device of the digits.

All but TC (`clutter.py`) are geometric: `draw` draws the parameters of n images, and `source` turns them into one
sampling grid per image, the position of every canvas pixel in the 28 x 28 digit.  Coordinates are normalised to
[-1, 1].  Lengths in pixels are those of the undistorted digit, whose half side is 14 px.  All ranges are configuration
(conf/data/distortion), and a distortion is an object that holds them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, Protocol, get_args, get_origin, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from stn.experiments.datasets import DIGIT_PX
from stn.experiments.datasets.clutter import Clutter, Params
from stn.experiments.rules import FLAG, Rule, is_finite, number, require, whole
from stn.matrices import inverse_3x3, linear_map
from stn.sampler import regular_grid, sample
from stn.transforms import Affine, ThinPlateSpline, perspective

HALF_PX = DIGIT_PX / 2
Range = tuple[float, float]


@runtime_checkable
class Distortion(Protocol):
    """The interface of every distortion: the side of its images, and batches of them."""

    @property
    def canvas_px(self) -> int: ...
    def apply(
        self, digits: Tensor, index: Tensor, generator: Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor: ...


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the cache outlives it
def copied_once(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values, cached on its device, so that a step copies nothing from the host."""
    return torch.tensor(values, dtype=dtype, device=device)


def _uniform(low: float, high: float, shape: tuple[int, ...], like: Generator, dtype: torch.dtype) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=like, device=like.device, dtype=dtype)


def _normal(std: float, shape: tuple[int, ...], like: Generator, dtype: torch.dtype) -> Tensor:
    return std * torch.randn(shape, generator=like, device=like.device, dtype=dtype)


class Geometric(ABC):
    """A distortion by one sampling grid per image, computed from the parameters drawn for it."""

    canvas_px: int

    @abstractmethod
    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """The parameters of n images, each with n rows."""

    @abstractmethod
    def source(self, params: Params) -> Float[Tensor, "b n 2"]:
        """The position of every canvas pixel in its digit, row by row."""

    def apply(
        self,
        digits: UInt8[Tensor, "d 28 28"],
        index: Int[Tensor, " b"],
        generator: Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b 1 s s"]:
        """digits[index], each with newly drawn parameters, in [0, 1] with 0 for the background."""
        source = self.source(self.draw(len(index), generator, dtype))
        return sample(digits[index][:, None].to(dtype) / 255, source, (self.canvas_px,) * 2)


@dataclass(frozen=True)
class Similarity(Geometric):
    """R and RTS: rotate by U(-max_angle, max_angle), scale by U(*scale), place uniformly at random on the canvas.

    The scaled 28 px square, before its rotation, stays on the canvas; R's canvas leaves no room, so nothing moves.
    """

    max_angle_deg: float
    scale: Range
    canvas_px: int

    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """angle_deg (n,), scale (n,), shift_px (n, 2): the digit's centre minus the canvas's, x then y."""
        scale = _uniform(*self.scale, (n,), generator, dtype)
        room_px = (self.canvas_px - scale * DIGIT_PX).clamp(min=0) / 2
        return {
            "angle_deg": _uniform(-self.max_angle_deg, self.max_angle_deg, (n,), generator, dtype),
            "scale": scale,
            "shift_px": room_px[:, None] * _uniform(-1.0, 1.0, (n, 2), generator, dtype),
        }

    def theta(self, params: Params) -> Float[Tensor, "b 6"]:
        """The affine map digit = R(-angle) (canvas - shift) / scale; positive angles turn clockwise on the screen."""
        angle, scale, shift = torch.deg2rad(params["angle_deg"]), params["scale"], params["shift_px"] / HALF_PX
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        zoom = self.canvas_px / DIGIT_PX
        return torch.stack([
            zoom * cos, zoom * sin, -(cos * shift[:, 0] + sin * shift[:, 1]),
            -zoom * sin, zoom * cos, sin * shift[:, 0] - cos * shift[:, 1],
        ], dim=1)  # fmt: skip

    def source(self, params: Params) -> Float[Tensor, "b n 2"]:
        back = self.theta(params)
        return Affine()(back, regular_grid((self.canvas_px,) * 2, back.dtype, back.device))


CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True)
class Projection(Geometric):
    """P: scale by U(*scale), then move each corner of the digit's square by N(0, corner_std_px) in x and in y.

    An unscaled square fills the canvas.
    """

    scale: Range
    corner_std_px: float
    canvas_px: int

    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """scale (n,), corners_px (n, 4, 2): the move of each corner, clockwise from the top left."""
        return {
            "scale": _uniform(*self.scale, (n,), generator, dtype),
            "corners_px": _normal(self.corner_std_px, (n, 4, 2), generator, dtype),
        }

    def source(self, params: Params) -> Float[Tensor, "b n 2"]:
        """By the homography that maps the moved corners back to the digit's."""
        scale = params["scale"]
        corners = copied_once(CORNERS, scale.dtype, scale.device)
        moved = scale[:, None, None] * corners + params["corners_px"] / HALF_PX
        forward = _square_to_quad(moved)
        # Z is 1 at the centre of the digit, which so lies in front even if the moved corners are no longer convex
        h = inverse_3x3(forward / forward[:, 2:, 2:])
        return perspective(h, regular_grid((self.canvas_px,) * 2, h.dtype, h.device), min_z=1e-6)


TO_UNIT = ((0.5, 0.0, 0.5), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0))  # [-1, 1] -> [0, 1]


def _square_to_quad(quad: Float[Tensor, "b 4 2"]) -> Float[Tensor, "b 3 3"]:
    """The homography from the corners of [-1, 1]^2 to those of a quadrilateral (Heckbert 1989, Sect. 2.2.3)."""
    p0, p1, p2, p3 = quad.unbind(1)
    d1, d2, s = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    det = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
    g = ((s[:, 0] * d2[:, 1] - d2[:, 0] * s[:, 1]) / det)[:, None]
    h = ((d1[:, 0] * s[:, 1] - s[:, 0] * d1[:, 1]) / det)[:, None]
    columns = [torch.cat([p1 - p0 + g * p1, g], 1), torch.cat([p3 - p0 + h * p3, h], 1)]
    columns.append(torch.cat([p0, torch.ones_like(g)], 1))
    return torch.stack(columns, dim=2) @ copied_once(TO_UNIT, quad.dtype, quad.device)


ELASTIC_SPLINE = ThinPlateSpline(4)
EXTENT = {"corners": 1.0, "cells": 0.75}  # position of E's outer control points, in half sides of the canvas


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # the cache outlives it
def _elastic_basis(side_px: int, extent: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "16 n"]:
    """The spline's B for the pixels of a canvas, with its outer control points at `extent`."""
    grid = regular_grid((side_px,) * 2, dtype)
    return ELASTIC_SPLINE.basis(grid if extent == 1 else grid / extent).to(device)


@dataclass(frozen=True)
class Elastic(Geometric):
    """E: scale by U(*scale), then move 4 x 4 control points of a thin plate spline by N(0, control_std_px) in x and y.

    An unscaled digit fills the canvas.  The spline maps canvas to digit, and its control points form a fixed regular
    grid, so one constant matrix serves all images (docs/differences.md, 8).  With `control` "corners" the outer points
    lie on the canvas's corners; with "cells" the points lie at the centres of 4 x 4 cells.
    """

    scale: Range
    control_std_px: float
    canvas_px: int
    control: Literal["corners", "cells"] = "corners"

    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """scale (n,), control_px (n, 16, 2): the move of each control point, row by row."""
        return {
            "scale": _uniform(*self.scale, (n,), generator, dtype),
            "control_px": _normal(self.control_std_px, (n, 16, 2), generator, dtype),
        }

    def source(self, params: Params) -> Float[Tensor, "b n 2"]:
        """digit = (canvas + spline of the moves) / scale.

        A thin plate spline does not depend on the unit of length: U(s r) = s^2 U(r) + s^2 log(s^2) r^2, and the terms
        in r^2 add up to an affine map, since the weights sum to 0, alone and times the control points.  So the spline
        through the points s c_i at p is the spline through c_i at p / s.
        """
        scale, extent = params["scale"], EXTENT[self.control]
        control = extent * copied_once(ELASTIC_SPLINE.identity, scale.dtype, scale.device)
        theta = (control + params["control_px"].flatten(1) / HALF_PX) / scale[:, None]
        basis = _elastic_basis(self.canvas_px, extent, theta.dtype, theta.device)
        return linear_map(theta.view(-1, 16, 2).transpose(1, 2), basis)


KINDS: dict[str, type] = {
    "r": Similarity, "rts": Similarity, "p": Projection, "e": Elastic, "tc": Clutter,
}  # fmt: skip


def build(config: Mapping[str, Any] | Distortion | str) -> Any:
    """The distortion of a config such as {"name": "rts", "max_angle_deg": 45.0, ...}; an object is returned unchanged.

    Raises ValueError on an unknown name, on missing and unknown keys, and on values out of range.
    """
    if isinstance(config, str):
        raise ValueError(f"data.distortion={config} is a name without ranges: write data/distortion={config}")
    if not isinstance(config, Mapping):
        return config
    name = config.get("name")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"unknown data.distortion.name={name!r}: choose one of {', '.join(KINDS)}")
    kind, values = KINDS[name], {key: value for key, value in config.items() if key != "name"}
    types = {field.name: field.type for field in fields(kind)}
    later = {field.name for field in fields(kind) if field.default is not MISSING}  # older records lack them
    for key in values:
        if key not in types:
            raise ValueError(f"unknown key data.distortion.{key} of {name}: it takes {', '.join(types)}")
    for key in types:
        if key not in values and key not in later:
            raise ValueError(f"data.distortion.{key} is missing: {name} takes {', '.join(types)}")
    return kind(**{key: _checked(key, value, types[key]) for key, value in values.items()})


def _checked(key: str, value: Any, wanted: Any) -> Any:
    """The value of a key, in the type of its field.  Raises ValueError if it does not fit."""
    if get_origin(wanted) is Literal:
        if not isinstance(value, str) or value not in get_args(wanted):
            raise ValueError(f"unknown data.distortion.{key}={value!r}: choose one of {', '.join(get_args(wanted))}")
        return value
    rules = {Range: SCALES, bool: FLAG, int: whole(*WHOLE.get(key, (0, MOST))), float: number(0, MOST)}
    require(rules[wanted], f"data.distortion.{key}", value)
    if wanted == Range:
        return tuple(map(float, value))
    return float(value) if wanted is float else value


def _is_scale(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_finite, value))
    return pair and 0.01 <= value[0] <= value[1] <= 100


MOST = 1024  # px, degrees and crops: nothing is visible beyond it
WHOLE = {"canvas_px": (DIGIT_PX, MOST), "patch_px": (1, DIGIT_PX)}  # limits of whole numbers
SCALES = Rule(_is_scale, "two numbers above 0, low then high, from 0.01 to 100")
FROZEN_CHUNK = 1000  # images drawn at a time: another number would change the frozen test sets


def frozen(distortion: Distortion, digits: UInt8[Tensor, "d 28 28"], seed: int) -> UInt8[Tensor, "d s s"]:
    """Every digit distorted once, the same on every machine: float64 on the CPU, rounded to 8 bits."""
    generator = Generator().manual_seed(seed)
    index = torch.arange(len(digits))
    chunks = [
        (distortion.apply(digits, part, generator, torch.float64)[:, 0] * 255).round().to(torch.uint8)
        for part in index.split(FROZEN_CHUNK)
    ]
    return torch.cat(chunks)


def frozen_params(distortion: Geometric, n: int, seed: int) -> Params:
    """The parameters that a geometric distortion drew for the n digits of `frozen`."""
    generator = Generator().manual_seed(seed)
    chunks = [distortion.draw(len(part), generator, torch.float64) for part in torch.arange(n).split(FROZEN_CHUNK)]
    return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}
