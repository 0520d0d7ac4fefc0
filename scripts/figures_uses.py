"""Draw the figures of docs/uses.md into docs/figures.

aliasing.png: what sampling fewer points than U has pixels does to it, and the remedy.  recurrent.png: how a trained
recurrent transformer corrects itself; it needs the run, below runs/, or its weights in results/weights.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from figures import find
from PIL import Image
from torch import Generator, Tensor

from stn import Affine, SpatialTransformer, draw, trace
from stn.datasets.mnist import DistortedMnist

ROOT = Path(__file__).parent.parent
FACTOR = 3  # one point for 3 x 3 pixels
SIDE_PX = 168  # 84, 42, 28 and 14 divide it
DIGIT = 8


def low_passed(u: Tensor, factor: int) -> Tensor:
    """u (B, C, H, W) without its frequencies above 1 / (2 factor) cycles a pixel, which fewer points cannot show."""
    fy, fx = torch.fft.fftfreq(u.shape[-2]).abs(), torch.fft.rfftfreq(u.shape[-1]).abs()
    keep = (fy[:, None] < 0.5 / factor) & (fx < 0.5 / factor)
    return torch.fft.irfft2(torch.fft.rfft2(u) * keep, s=u.shape[-2:])


def at_size(u: Tensor, theta: Tensor, factor: int, pool: int) -> Tensor:
    """V of 1 / factor the size of u, each of its pixels the mean of pool x pool sampled points."""
    size = (u.shape[-2] // factor * pool, u.shape[-1] // factor * pool)
    v = SpatialTransformer(torch.nn.Identity(), Affine(), size).warp(u, theta)
    return torch.nn.functional.avg_pool2d(v, pool)


def stripes(side_px: int, cycles_per_px: float) -> Tensor:
    wave = torch.cos(2 * math.pi * cycles_per_px * torch.arange(side_px))
    return (0.5 + 0.5 * wave).expand(1, 1, side_px, side_px)


def zone_plate(side_px: int) -> Tensor:
    """Rings whose frequency rises from 0 in the centre to 0.5 cycles a pixel, the highest there is, at the edges."""
    x = torch.arange(side_px) - (side_px - 1) / 2
    return (0.5 + 0.5 * torch.cos(math.pi * 0.5 / (side_px / 2) * (x[:, None] ** 2 + x**2)))[None, None]


def turned(angle_deg: float) -> Tensor:
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return torch.tensor([[cos, -sin, 0.0, sin, cos, 0.0]])


def aliasing() -> Image.Image:
    """A row an input: U, V sampled directly, V averaged, the ideal; below a V its root mean square off the ideal."""
    digits, _ = DistortedMnist(ROOT / "data", "rts").batch(12, Generator().manual_seed(5))
    shown = [(stripes(84, 0.3), turned(0)), (zone_plate(84), turned(0)), (digits[DIGIT : DIGIT + 1], turned(30))]
    rows = []
    for u, theta in shown:
        ideal = at_size(low_passed(u, FACTOR), theta, FACTOR, 1)
        panels = [draw.caption(draw.tile(u[0], SIDE_PX), f"U, {u.shape[-1]} px")]
        for name, pool in (("direct", 1), ("averaged", FACTOR)):
            v = at_size(u, theta, FACTOR, pool)
            off = (v - ideal).square().mean().sqrt().item()
            panels.append(draw.caption(draw.tile(v[0], SIDE_PX), f"{name}: off by {off:.3f}"))
        rows.append([*panels, draw.caption(draw.tile(ideal[0], SIDE_PX), f"ideal, {ideal.shape[-1]} px")])
    return draw.stack(rows)


def recurrent(folder: Path, columns: int = 8) -> Image.Image | None:
    """The first test images, and for every look of a trained recurrent transformer its grid on U and its V."""
    found = find(folder, "mnist_st_fcn_recurrent_3", "rts")
    if found is None:
        return None
    network, data = found
    u = data.test.tensors[0][:columns].float() / 255
    rows, names = [[draw.tile(x, SIDE_PX // 2) for x in u]], ["U"]
    for i, warp in enumerate(trace(network, u), start=1):
        size = (warp.v.shape[2], warp.v.shape[3])
        rows.append([draw.grid_tile(x, s, size, SIDE_PX // 2) for x, s in zip(u, warp.source, strict=True)])
        rows.append([draw.tile(v, SIDE_PX // 2) for v in warp.v])
        names += [f"look {i}: grid", f"V {i}"]
    return draw.label(draw.stack(rows), names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/figures", help="default: docs/figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, picture in {"aliasing": aliasing(), "recurrent": recurrent(options.runs)}.items():
        if picture is not None:
            picture.save(options.out / f"{name}.png", optimize=True)
            print(f"written: {options.out / name}.png")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
