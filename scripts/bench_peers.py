"""The part of `bench.py` that compares every transform with its peers: grid, warp and the gradient in theta.

PyTorch's way is `F.affine_grid` + `F.grid_sample`.  Where `affine_grid` has no such grid, it is the usual matrix
product with precomputed constants; for the projective map it ignores points behind the camera.  Kornia's way is
`homography_warp`, `homography_warp3d` or `warp_image_tps`, if kornia is installed (`pip install kornia`).  Its volumes
have another axis order and its spline other centres, so its V differs, for the same amount of work.  The CPU time of
one thread is measured, so that other load on the machine matters little.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from timing import turns
from torch import Tensor, nn

from stn import (
    Affine,
    Affine3d,
    Attention,
    Constrained,
    Projective,
    Rotation,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Transform,
    Translation,
    regular_grid,
)

Way = Callable[[Tensor, Tensor], Tensor]  # from u and theta to v
SIDES, BATCHES = (28, 60, 224), (1, 256)
MOST_POINTS = 2**20  # for volumes, and for kornia's spline, which needs some 500 bytes a point
UPRIGHT = {1: 0.0, 3: 0.0}


def matrix(name: str, theta: Tensor) -> Tensor:
    """The affine matrix of a theta, as written for `F.affine_grid`."""
    if name in ("Affine", "Affine3d"):
        d = 2 if name == "Affine" else 3
        return theta.view(-1, d, d + 1)
    zero, one = torch.zeros_like(theta[:, 0]), torch.ones_like(theta[:, 0])
    if name == "Constrained":
        sx, tx, sy, ty = theta.unbind(1)
        rows = [sx, zero, tx, zero, sy, ty]
    elif name == "Attention":
        s, tx, ty = theta.unbind(1)
        rows = [s, zero, tx, zero, s, ty]
    elif name == "Translation":
        tx, ty = theta.unbind(1)
        rows = [one, zero, tx, zero, one, ty]
    else:
        s, angle, tx, ty = theta.unbind(1) if name == "Similarity" else (one, theta[:, 0], zero, zero)
        cos, sin = s * angle.cos(), s * angle.sin()
        rows = [cos, -sin, tx, sin, cos, ty]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def homography(theta: Tensor) -> Tensor:
    return torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)


def with_pytorch(transform: Transform, size: tuple[int, ...]) -> Way:
    name, target = type(transform).__name__, regular_grid(size).clone()

    def warp(u: Tensor, theta: Tensor) -> Tensor:
        if isinstance(transform, Projective):
            xyz = columns @ homography(theta).mT
            grid = (xyz[..., :2] / xyz[..., 2:]).unflatten(1, size)
        elif isinstance(transform, ThinPlateSpline):
            values = torch.cat([theta.unflatten(1, (-1, 2)), none.expand(len(u), -1, -1)], dim=1)
            grid = (columns @ (solve @ values)).unflatten(1, size)
        else:
            grid = F.affine_grid(matrix(name, theta), [len(u), 1, *size], align_corners=False)
        return F.grid_sample(u, grid, align_corners=False)

    if isinstance(transform, Projective):
        columns = torch.cat([target, torch.ones_like(target[:, :1])], dim=1)
    elif isinstance(transform, ThinPlateSpline):
        columns, solve, none = spline_matrices(transform.identity, target)
    return warp


def spline_matrices(identity: tuple[float, ...], target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The constants of a usual thin plate spline: U(r), 1, x, y of every point, the inverse system, the zero rows."""
    control = torch.tensor(identity).view(-1, 2)

    def features(points: Tensor) -> Tensor:
        r2 = (points[:, None] - control).square().sum(-1)
        return torch.cat([torch.xlogy(r2, r2), torch.ones_like(points[:, :1]), points], dim=1)

    rows = features(control)
    below = F.pad(rows[:, -3:].T, (0, 3))
    return features(target), torch.linalg.inv(torch.cat([rows, below])), torch.zeros(1, 3, 2)


def with_kornia(transform: Transform, size: tuple[int, ...]) -> Way:
    name, theirs = type(transform).__name__, import_module("kornia.geometry.transform")

    def warp(u: Tensor, theta: Tensor) -> Tensor:
        if isinstance(transform, ThinPlateSpline):
            control = torch.tensor(transform.identity).view(1, -1, 2).expand(len(u), -1, -1)
            source = theta.unflatten(1, (-1, 2))
            return theirs.warp_image_tps(u, source, *theirs.get_tps_transform(control, source))
        if isinstance(transform, Projective):
            return theirs.homography_warp(u, homography(theta), size)
        affine = matrix(name, theta)
        last = torch.zeros_like(affine[:, :1])
        last[..., -1] = 1
        to = theirs.homography_warp3d if transform.dims == 3 else theirs.homography_warp
        return to(u, torch.cat([affine, last], dim=1), size)

    return warp


def gradient(way: Way, u: Tensor, theta: Tensor, of_v: Tensor) -> Tensor:
    return torch.autograd.grad(way(u, theta), theta, of_v)[0]


def bench_transforms() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transforms: list[Any] = [
        Affine(), Attention(), Translation(), Similarity(), Rotation(), Constrained(Affine(), UPRIGHT), Projective(),
        ThinPlateSpline(), Affine3d(),
    ]  # fmt: skip
    peers = {"PyTorch": with_pytorch, **({"kornia": with_kornia} if find_spec("kornia") else {})}
    print("\n(k) grid, warp and gradient in theta, one channel: the peer's time / ours, median of rounds (lowest)")
    if "kornia" not in peers:
        print("    kornia is not installed: `pip install kornia` adds its column")
    print(f"    {'':18s}{'px':>4s}{'batch':>6s}{'ours, ms':>11s}{''.join(f'{peer:>18s}' for peer in peers)}")
    for transform in transforms:
        for side in SIDES:
            for batch in BATCHES:
                size = (side,) * transform.dims
                if transform.dims == 3 and batch * side**3 > MOST_POINTS:
                    continue
                row(transform, size, batch, peers)
    torch.set_num_threads(threads)


def row(transform: Any, size: tuple[int, ...], batch: int, peers: dict[str, Any]) -> None:
    torch.manual_seed(0)
    u = torch.rand(batch, 1, *size)
    theta = (torch.tensor(transform.identity) + 0.05 * torch.randn(batch, transform.num_params)).requires_grad_()
    ours = SpatialTransformer(nn.Identity(), transform).warp
    points = batch * len(regular_grid(size))
    ways: dict[str, Any] = {"ours": ours}
    for peer, way in peers.items():
        if not (peer == "kornia" and isinstance(transform, ThinPlateSpline) and points > MOST_POINTS):
            ways[peer] = way(transform, size)
    of_v = torch.rand_like(u)
    took = turns(
        {name: partial(gradient, way, u, theta, of_v) for name, way in ways.items()},
        rounds=7,
        min_s=0.02,
        clock=time.process_time,
    )
    name = type(transform).__name__
    cells = []
    for peer in peers:
        ratios = [a / b for a, b in zip(took.get(peer, []), took["ours"], strict=False)]
        cells.append(f"{statistics.median(ratios):8.2f}x ({min(ratios):5.2f}x)" if ratios else f"{'-':>18s}")
    print(
        f"    {name:18s}{size[0]:4d}{batch:6d}{1e3 * statistics.median(took['ours']):11.3f}{''.join(cells)}", flush=True
    )
