"""The figures of docs/uses.md: aliasing and its remedy, and the steps of a recurrent transformer."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor

from stn import Affine, SpatialTransformer, trace
from stn.experiments import draw
from stn.experiments.figures import distorted_mnist, trained

FACTOR = 3  # one sampled point per 3 x 3 pixels
SIDE_PX = 168  # 84, 42, 28 and 14 divide it
DIGIT = 8


def low_passed(u: Tensor, factor: int) -> Tensor:
    """u (B, C, H, W) without frequencies above 1 / (2 factor) cycles per pixel, which the reduced grid cannot show."""
    fy, fx = torch.fft.fftfreq(u.shape[-2]).abs(), torch.fft.rfftfreq(u.shape[-1]).abs()
    keep = (fy[:, None] < 0.5 / factor) & (fx < 0.5 / factor)
    return torch.fft.irfft2(torch.fft.rfft2(u) * keep, s=u.shape[-2:])


def at_size(u: Tensor, theta: Tensor, factor: int, pool: int) -> Tensor:
    """V with sides 1 / factor of u's, each of its pixels the mean of pool x pool sampled points."""
    size = (u.shape[-2] // factor * pool, u.shape[-1] // factor * pool)
    v = SpatialTransformer(torch.nn.Identity(), Affine(), size).warp(u, theta)
    return torch.nn.functional.avg_pool2d(v, pool)


def stripes(side_px: int, cycles_per_px: float) -> Tensor:
    wave = torch.cos(2 * math.pi * cycles_per_px * torch.arange(side_px))
    return (0.5 + 0.5 * wave).expand(1, 1, side_px, side_px)


def zone_plate(side_px: int) -> Tensor:
    """Rings whose frequency rises from 0 at the centre to the Nyquist frequency, 0.5 cycles per pixel, at the edges."""
    x = torch.arange(side_px) - (side_px - 1) / 2
    return (0.5 + 0.5 * torch.cos(math.pi * 0.5 / (side_px / 2) * (x[:, None] ** 2 + x**2)))[None, None]


def turned(angle_deg: float) -> Tensor:
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return torch.tensor([[cos, -sin, 0.0, sin, cos, 0.0]])


def aliasing(runs: Path) -> Image.Image:
    """A row per input: U, V sampled directly, V averaged, the ideal; below each V its RMS difference from the ideal."""
    names = ("U", "direct", "averaged", "ideal")
    digits, _ = distorted_mnist("rts").batch(12, Generator().manual_seed(5))
    shown = [(stripes(84, 0.3), turned(0.0)), (zone_plate(84), turned(0.0)), (digits[DIGIT : DIGIT + 1], turned(30.0))]
    rows = []
    for u, theta in shown:
        ideal = at_size(low_passed(u, FACTOR), theta, FACTOR, 1)
        panels = [draw.caption(draw.tile(u[0], SIDE_PX), f"{u.shape[-1]} px")]
        for pool in (1, FACTOR):
            v = at_size(u, theta, FACTOR, pool)
            off = (v - ideal).square().mean().sqrt().item()
            panels.append(draw.caption(draw.tile(v[0], SIDE_PX), f"off by {off:.3f}"))
        rows.append([*panels, draw.caption(draw.tile(ideal[0], SIDE_PX), f"{ideal.shape[-1]} px")])
    return draw.rows([("", [draw.words(name, SIDE_PX) for name in names]), *(("", row) for row in rows)])


def recurrent(runs: Path, columns: int = 6) -> Image.Image:
    """The first test images, and for every step of a trained recurrent transformer its grid on U and its V."""
    network, data = trained("mnist_st_fcn_recurrent_3", runs, distortion="rts")
    u = data.test.tensors[0][:columns].float() / 255
    rows = [("U", [draw.tile(x, SIDE_PX // 2) for x in u])]
    for i, warp in enumerate(trace(network, u), start=1):
        size = (warp.v.shape[2], warp.v.shape[3])
        grids = [draw.grid_tile(x, s, size, SIDE_PX // 2) for x, s in zip(u, warp.source, strict=True)]
        rows.append((f"look {i}: grid", grids))
        rows.append((f"V {i}", [draw.tile(v, SIDE_PX // 2) for v in warp.v]))
    return draw.rows(rows)
