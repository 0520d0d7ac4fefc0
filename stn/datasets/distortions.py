"""The distortions of Sect. 4.1 and A.4, as batched tensor code on the device of the digits.

A geometric distortion is drawn (`draw`: the parameters of n images) and then applied as one sampling grid per image
(`source`: where in the 28 x 28 digit every pixel of the canvas lies).  Coordinates are normalised to [-1, 1], and
lengths in pixels are those of the undistorted digit, whose half side is 14 px.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from stn.sampler import regular_grid, sample
from stn.transforms import Affine, ThinPlateSpline, perspective

DIGIT_PX = 28
HALF_PX = DIGIT_PX / 2
Params = dict[str, Tensor]


def _uniform(low: float, high: float, shape: tuple[int, ...], like: Generator, dtype: torch.dtype) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=like, device=like.device, dtype=dtype)


def _normal(std: float, shape: tuple[int, ...], like: Generator, dtype: torch.dtype) -> Tensor:
    return std * torch.randn(shape, generator=like, device=like.device, dtype=dtype)


@dataclass(frozen=True)
class Similarity:
    """R and RTS: rotate by U(-max_angle, max_angle), scale by U(*scale), put at a uniformly random place of the canvas.

    The scaled 28 px square, before its rotation, stays inside the canvas; R's canvas leaves no room, so nothing moves.
    """

    max_angle_deg: float
    scale: tuple[float, float] = (1.0, 1.0)
    canvas_px: int = DIGIT_PX

    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """angle_deg (n,), scale (n,), shift_px (n, 2): the digit's centre off the canvas's, x then y."""
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
class Projection:
    """P: scale by U(*scale), then move each corner of the digit's square by N(0, corner_std_px) in x and in y.

    PS, `stretch`: by one N(0, corner_std_px) along the corner's diagonal instead, outwards where it is positive.
    """

    stretch: bool = False
    scale: tuple[float, float] = (0.75, 1.0)
    corner_std_px: float = 5.0
    canvas_px: int = DIGIT_PX

    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """scale (n,), corners_px (n, 4, 2), of PS (n, 4, 1): how far each moves, clockwise from the top left."""
        return {
            "scale": _uniform(*self.scale, (n,), generator, dtype),
            "corners_px": _normal(self.corner_std_px, (n, 4, 1 if self.stretch else 2), generator, dtype),
        }

    def source(self, params: Params) -> Float[Tensor, "b n 2"]:
        """The homography that takes the moved corners back to the digit's."""
        corners = torch.tensor(CORNERS).to(params["scale"])
        move_px = params["corners_px"] * corners / 2**0.5 if self.stretch else params["corners_px"]
        moved = params["scale"][:, None, None] * corners + move_px / HALF_PX
        forward = _square_to_quad(moved)
        # Z is 1 at the centre of the digit: it lies in front even where the moved corners are not convex any more
        h = _inverse(forward / forward[:, 2:, 2:])
        return perspective(h, regular_grid((self.canvas_px,) * 2, h.dtype, h.device), min_z=1e-6)


def _square_to_quad(quad: Float[Tensor, "b 4 2"]) -> Float[Tensor, "b 3 3"]:
    """The homography from the corners of [-1, 1]^2 to those of a quadrilateral (Heckbert 1989, Sect. 2.2.3)."""
    p0, p1, p2, p3 = quad.unbind(1)
    d1, d2, s = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    det = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
    g = ((s[:, 0] * d2[:, 1] - d2[:, 0] * s[:, 1]) / det)[:, None]
    h = ((d1[:, 0] * s[:, 1] - s[:, 0] * d1[:, 1]) / det)[:, None]
    columns = [torch.cat([p1 - p0 + g * p1, g], 1), torch.cat([p3 - p0 + h * p3, h], 1)]
    columns.append(torch.cat([p0, torch.ones_like(g)], 1))
    unit = torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]]).to(quad)  # [-1, 1] -> [0, 1]
    return torch.stack(columns, dim=2) @ unit


def _inverse(m: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
    """The adjugate over the determinant: for 3 x 3 matrices much faster than a batched solver."""
    a, b, c = m.unbind(2)
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1)
    return rows / (rows[:, 0] * a).sum(1)[:, None, None]


ELASTIC_SPLINE = ThinPlateSpline(4)


@dataclass(frozen=True)
class Elastic:
    """E: scale by U(*scale), then a thin plate spline whose 4 x 4 control points move by N(0, control_std_px) each way.

    The spline is drawn on the map from canvas to digit, whose control points are a fixed regular grid, so that one
    constant matrix serves every image (README, "Differences from the paper").
    """

    scale: tuple[float, float] = (0.75, 1.0)
    control_std_px: float = 1.5
    canvas_px: int = DIGIT_PX

    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """scale (n,), control_px (n, 16, 2): how far each control point moves, row by row."""
        return {
            "scale": _uniform(*self.scale, (n,), generator, dtype),
            "control_px": _normal(self.control_std_px, (n, 16, 2), generator, dtype),
        }

    def source(self, params: Params) -> Float[Tensor, "b n 2"]:
        """digit = (canvas + spline of the moves) / scale."""
        control = ELASTIC_SPLINE.control.to(params["scale"])
        theta = (control + params["control_px"] / HALF_PX) / params["scale"][:, None, None]
        target = regular_grid((self.canvas_px,) * 2, theta.dtype, theta.device)
        return ELASTIC_SPLINE(theta.flatten(1), target)


@dataclass(frozen=True)
class Clutter:
    """TC: the digit at a uniformly random whole-pixel place, plus `patches` random crops of other digits; maximum where
    they overlap.  A crop is any patch_px x patch_px window of a digit, so many are partly or wholly black.
    """

    canvas_px: int = 60
    patches: int = 6
    patch_px: int = 6

    def draw(self, n: int, generator: Generator, num_digits: int) -> Params:
        """place (n, 2) of the digit; patch_digit (n, K), patch_crop, patch_place (n, K, 2); x then y, in px."""

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
        """The canvases of digits[index]; patch_digit counts on from the image's own digit, never its clutter."""
        n, flat = len(index), digits.flatten(1)
        canvas = digits.new_zeros(n, self.canvas_px**2)
        window = _window(DIGIT_PX, self.canvas_px, digits.device)
        canvas.scatter_(1, _offset(params["place"], self.canvas_px) + window, flat[index])
        other = (index[:, None] + 1 + params["patch_digit"]) % len(digits)
        inside = _window(self.patch_px, DIGIT_PX, digits.device)
        crop = flat[other[..., None], _offset(params["patch_crop"], DIGIT_PX) + inside]
        onto = _offset(params["patch_place"], self.canvas_px) + _window(self.patch_px, self.canvas_px, digits.device)
        canvas.scatter_reduce_(1, onto.flatten(1), crop.flatten(1), reduce="amax")
        return canvas.unflatten(1, (self.canvas_px, self.canvas_px))


def _window(side: int, stride: int, device: torch.device) -> Tensor:
    """Flat indices of a side x side window at the top left of an image whose rows are `stride` long."""
    line = torch.arange(side, device=device)
    return (line[:, None] * stride + line).flatten()


def _offset(corner: Tensor, stride: int) -> Tensor:
    return (corner[..., 1] * stride + corner[..., 0])[..., None]


DISTORTIONS: dict[str, Similarity | Projection | Elastic | Clutter] = {
    "r": Similarity(max_angle_deg=90.0),
    "rts": Similarity(max_angle_deg=45.0, scale=(0.7, 1.2), canvas_px=42),
    "p": Projection(),
    "ps": Projection(stretch=True),
    "e": Elastic(),
    "tc": Clutter(),
}


def distort(
    name: str,
    digits: UInt8[Tensor, "d 28 28"],
    index: Int[Tensor, " b"],
    generator: Generator,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 1 s s"]:
    """digits[index] under fresh draws of distortion `name`, in [0, 1] with 0 for the background."""
    distortion = DISTORTIONS[name]
    if isinstance(distortion, Clutter):
        params = distortion.draw(len(index), generator, len(digits))
        return distortion.compose(digits, index, params)[:, None].to(dtype) / 255
    source = distortion.source(distortion.draw(len(index), generator, dtype))
    return sample(digits[index][:, None].to(dtype) / 255, source, (distortion.canvas_px,) * 2)


FROZEN_CHUNK = 1000  # part of what a frozen test set is: the generator is asked for as many images at a time


def frozen(name: str, digits: UInt8[Tensor, "d 28 28"], seed: int) -> UInt8[Tensor, "d s s"]:
    """Every digit distorted once, the same on every machine: float64 on the CPU, rounded to 8 bits."""
    generator = Generator().manual_seed(seed)
    index = torch.arange(len(digits))
    chunks = [
        (distort(name, digits, part, generator, torch.float64)[:, 0] * 255).round().to(torch.uint8)
        for part in index.split(FROZEN_CHUNK)
    ]
    return torch.cat(chunks)


def frozen_params(name: str, n: int, seed: int) -> Params:
    """What a geometric distortion drew for the n digits of `frozen`."""
    generator, distortion = Generator().manual_seed(seed), DISTORTIONS[name]
    if isinstance(distortion, Clutter):
        raise ValueError(f"distortion {name!r} has no parameters of pose: choose one of r, rts, p, ps, e")
    chunks = [distortion.draw(len(part), generator, torch.float64) for part in torch.arange(n).split(FROZEN_CHUNK)]
    return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}
