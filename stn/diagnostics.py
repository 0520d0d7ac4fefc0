"""Diagnostics of a spatial transformer: what its window does, and whether it has collapsed."""

import torch
from jaxtyping import Float
from torch import Tensor

from stn.transformer import Warp

MAX_OUT_OF_IMAGE = 0.75  # above it, most of V is background: the window has left the image or zoomed far out
MIN_DETERMINANT = 0.01  # below it, the window covers less than 1 % of the image


def determinant(source: Float[Tensor, "b n d"], size: tuple[int, ...]) -> Float[Tensor, " b"]:
    """Mean Jacobian determinant of the map target -> source over a grid of `size` (H', W') or (D', H', W').

    Computed from differences between neighbouring points, so it holds for any transform.  1 keeps areas or volumes,
    0.25 zooms in by 2 (0.125 in 3D), a negative value mirrors.  nan where the grid has a single point along some axis.
    Where the horizon of a `Projective` crosses the window, steps across it count too, so the mean says little there.

    >>> determinant(0.5 * regular_grid((4, 4))[None], (4, 4))
    tensor([0.2500])
    """
    grid = source.unflatten(1, size)
    columns = []  # d source / dx, then / dy, then / dz, at the points that have a neighbour in every direction
    for axis in range(len(size), 0, -1):
        step = grid.diff(dim=axis) * size[axis - 1] / 2
        for other in range(1, len(size) + 1):
            step = step if other == axis else step.narrow(other, 0, size[other - 1] - 1)
        columns.append(step)
    if len(size) == 2:
        (dx, dy) = columns
        jacobian = dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]
    else:
        dx, dy, dz = columns
        jacobian = (torch.linalg.cross(dx, dy) * dz).sum(-1)
    return jacobian.flatten(1).mean(1)


def out_of_image(source: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
    """The share of source points outside U, where V is 0.  A nan counts as outside."""
    inside = (source.abs() <= 1).all(-1)
    return (~inside).float().mean(1)


def health(warp: Warp) -> dict[str, float]:
    """Three means over the batch of one warp of `stn.trace`.

    `det` is the determinant of its map, `out_of_image` the share of its window outside U, `theta_distance` the
    Euclidean |theta - identity|.  If any theta of the batch is nan, so are `det` and `theta_distance`.

    >>> st = SpatialTransformer(fully_connected((1, 8, 8), Affine()), Affine())
    >>> [warp] = trace(st, torch.rand(2, 1, 8, 8))
    >>> {name: round(value, 3) for name, value in health(warp).items()}
    {'det': 1.0, 'out_of_image': 0.0, 'theta_distance': 0.0}
    """
    distance = (warp.theta - torch.tensor(warp.identity).to(warp.theta)).norm(dim=1)
    return {
        "det": determinant(warp.source, tuple(warp.v.shape[2:])).mean().item(),
        "out_of_image": out_of_image(warp.source).mean().item(),
        "theta_distance": distance.mean().item(),
    }


def collapsed(warp: Warp) -> bool:
    """Whether V holds nothing useful: over three quarters of the window lie outside U, or it covers under 1 % of U.

    The second test is for images alone.  In a volume a flat window may be right: one plane of an extruded digit shows
    the digit.

    >>> st = SpatialTransformer(fully_connected((1, 8, 8), Affine()), Affine())
    >>> [collapsed(warp) for warp in trace(st, torch.rand(2, 1, 8, 8))]
    [False]
    """
    det = determinant(warp.source, tuple(warp.v.shape[2:])).abs().mean()  # mirrored windows must not cancel
    flat = warp.v.dim() == 4 and bool(det < MIN_DETERMINANT)
    return flat or bool(out_of_image(warp.source).mean() > MAX_OUT_OF_IMAGE)
