"""Target grid and differentiable sampling (Sect. 3.2 and 3.3); the one place that fixes where a pixel lies.

Coordinates are normalised to [-1, 1] in the order (x, y) or (x, y, z).  -1 and 1 are the outer *edges* of the border
pixels, so pixel i of W has its centre at (2 i + 1) / W - 1.  PyTorch calls this `align_corners=False`.  A window of
scale 0.5 covers half of each side at every resolution.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from stn.constants import Constants, real

ALIGN_CORNERS = False
KERNELS = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")
GRIDS = Constants(64 * 2**20)


def regular_grid(
    size: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Float[Tensor, "n d"]:
    """The regular grid G = {G_i} of pixel centres of an image of `size` (H, W) or (D, H, W), row by row.

    Computed in float64, so that it is the same on every device.  Cached (up to 64 MiB of grids): do not write to it.
    Raises ValueError on a side below 1 and on a dtype without fractions.

    >>> regular_grid((1, 2))
    tensor([[-0.5000,  0.0000],
            [ 0.5000,  0.0000]])
    """
    if not isinstance(size, Sequence) or not dtype.is_floating_point:
        raise ValueError(f"a regular grid needs a size such as (H, W) and a floating dtype, got {size} and {dtype}")
    where = real(device)
    if where is None:
        return make_grid(size, dtype, torch.device(device))
    sides = tuple(index(n) for n in size)  # torch.jit.trace has tensors here
    if min(sides, default=0) < 1:
        raise ValueError(f"a regular grid needs sides of at least one pixel, got {sides}")
    return GRIDS.get((sides, dtype, where), lambda: make_grid(sides, dtype, torch.device("cpu")), where)


def make_grid(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "n d"]:
    """`regular_grid` without the cache."""
    axes = [axis(n, dtype, device) for n in size]
    return torch.stack([x.flatten() for x in reversed(torch.meshgrid(*axes, indexing="ij"))], dim=-1)


def grid_key(target: Tensor) -> Any:
    """(size, dtype, device) if `target` is the cached `regular_grid(size, dtype, device)` itself, else None."""
    return None if torch.compiler.is_compiling() else GRIDS.key_of(target)


def axis(n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " n"]:
    """The pixel centres along a side of n pixels, computed in float64 (on the CPU for MPS, which has none)."""
    line = torch.arange(n, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    return ((2 * line + 1) / n - 1).to(dtype=dtype, device=device)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Disables autocast where it is on or may be on later: doing so needlessly doubles the time of a small warp."""
    if device_type != "meta" and (torch.compiler.is_compiling() or torch.is_autocast_enabled(device_type)):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def check_modes(kernel: str, padding_mode: str) -> None:
    """Raise ValueError on a kernel or a padding mode that does not exist."""
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"unknown padding_mode {padding_mode!r}: choose one of {', '.join(PADDING_MODES)}")


def sample(
    u: Shaped[Tensor, "b c *size"],
    source: Float[Tensor, "b n d"],
    size: tuple[int, ...],
    kernel: str = "bilinear",
    padding_mode: str = "zeros",
) -> Shaped[Tensor, "b c *out"]:
    """V of eq. (3): u (B, C, H, W) or (B, C, D, H, W) sampled at the source points.

    `size` is that of the output, (H', W') or (D', H', W'), and its product is N.  Kernels:
    `bilinear`, eq. (5), trilinear in 3D, with the sub-gradients of eq. (6) and (7);
    `nearest`, the integer kernel of eq. (4), with halves rounded up as there.  Its gradient in u is 1 at the pixel
    copied.  Its gradient in the source points is 0 everywhere, so a localisation network before it learns nothing
    through it;
    `bicubic`, Keys' cubic convolution with a = -0.75, 2D only.  It overshoots: V may leave the range of u.
    Outside u are zeros.  `padding_mode` can replace them by the nearest border pixel (`border`) or by u mirrored at its
    edge (`reflection`), for feature maps in which 0 is not the background.

    Computed in float32 at least; V has the dtype of u.  Only `nearest`, which copies exactly, takes integers and
    booleans.  A nan in a source point makes V nan there, or 0 for integers.  Under
    `torch.use_deterministic_algorithms` only the bilinear kernel on images with zero padding has a gradient on CUDA
    (`gathered`).  Raises ValueError on an unknown kernel or padding mode, on a dtype that the kernel would round, and
    on shapes that do not fit.

    >>> u = torch.tensor([[[[1.0, 2.0]]]])
    >>> sample(u, torch.tensor([[[0.0, 0.0]]]), (1, 1))
    tensor([[[[1.5000]]]])
    """
    check_modes(kernel, padding_mode)
    dims, sides = u.dim() - 2, len(size) if isinstance(size, Sequence) else None
    if dims not in (2, 3) or source.dim() != 3 or sides != dims or source.shape[2] != dims:
        raise ValueError(
            f"sample takes u (B, C, H, W) with source (B, N, 2) and size (H', W'), or one dimension more of each; "
            f"got u {tuple(u.shape)}, source {tuple(source.shape)}, size {size}"
        )
    if source.shape[0] != u.shape[0] or source.shape[1] != math.prod(size):
        raise ValueError(
            f"u {tuple(u.shape)} and size {tuple(size)} need source points "
            f"({u.shape[0]}, {math.prod(size)}, {dims}), got {tuple(source.shape)}"
        )
    if kernel == "bicubic" and dims == 3:
        raise ValueError(f"kernel 'bicubic' is for images, u is a volume {tuple(u.shape)}: choose bilinear or nearest")
    if not u.is_floating_point():
        if kernel != "nearest":
            raise ValueError(f"kernel {kernel!r} would round u of {u.dtype}: choose 'nearest', or pass u.float()")
        return _copy(u, source, size, padding_mode)
    dtype = torch.promote_types(u.dtype, torch.float32)
    grid = source.to(dtype).view(source.shape[0], *size, dims)
    if kernel == "nearest":
        grid = _centres(grid, u.shape[2:])
    deterministic = u.is_cuda and torch.are_deterministic_algorithms_enabled()
    if deterministic and (kernel, padding_mode, dims) == ("bilinear", "zeros", 2):
        return gathered(u.to(dtype), grid).to(u.dtype)
    with without_autocast(u.device.type):
        v = F.grid_sample(u.to(dtype), grid, mode=kernel, padding_mode=padding_mode, align_corners=ALIGN_CORNERS)
    # elsewhere a nan reads as outside: only these kernels of the CPU multiply by a weight that is nan
    if u.device.type != "cpu" or kernel == "nearest" or padding_mode != "zeros" or dims == 3:
        v = v.masked_fill(grid.isnan().any(-1).unsqueeze(1), torch.nan)
    return v.to(u.dtype)


def _copy(u: Shaped[Tensor, "b c *size"], source: Tensor, size: tuple[int, ...], padding_mode: str) -> Tensor:
    """The nearest pixels of any dtype, exactly: samples their indices (from 1; 0 is outside), then looks them up."""
    pixels = math.prod(u.shape[2:])
    dtype = torch.float32 if pixels < 2**24 else torch.float64
    number = torch.arange(1, pixels + 1, dtype=dtype, device=u.device).view(1, 1, *u.shape[2:])
    grid = _centres(source.to(dtype).unflatten(1, size), u.shape[2:])
    with without_autocast(u.device.type):
        found = F.grid_sample(
            number.expand(len(u), -1, *u.shape[2:]), grid, "nearest", padding_mode, align_corners=ALIGN_CORNERS
        )
    found = found.masked_fill(grid.isnan().any(-1).unsqueeze(1), 0).long().flatten(2)
    v = u.flatten(2).gather(2, (found - 1).clamp(min=0).expand(-1, u.shape[1], -1))
    return v.masked_fill(found == 0, 0).unflatten(2, size)


def _centres(grid: Float[Tensor, "b *out d"], size: tuple[int, ...]) -> Float[Tensor, "b *out d"]:
    """The centre of pixel floor(x + 0.5) for every point: eq. (4).  PyTorch rounds a half to the even pixel."""
    pixels = ((x + 1) * n / 2 for x, n in zip(grid.unbind(-1), reversed(size), strict=True))
    return torch.stack([(2 * p.floor() + 1) / n - 1 for p, n in zip(pixels, reversed(size), strict=True)], dim=-1)


def gathered(u: Float[Tensor, "b c h w"], grid: Float[Tensor, "b h2 w2 2"]) -> Float[Tensor, "b c h2 w2"]:
    """The bilinear kernel of eq. (5) as a weighted sum of four gathers, one per neighbour of a point.

    The same function and sub-gradients as `grid_sample`, which PyTorch refuses to differentiate on CUDA under
    `torch.use_deterministic_algorithms`.  The backward of a gather has a deterministic version.
    """
    h, w = u.shape[2:]
    x, y = grid.flatten(1, 2).unbind(-1)
    x, y = ((x + 1) * w - 1) / 2, ((y + 1) * h - 1) / 2
    left, top = x.detach().floor(), y.detach().floor()
    right, bottom = x - left, y - top  # the weights of the right and of the lower neighbour
    v = u.new_zeros(())
    for row, weight_y in ((top, 1 - bottom), (top + 1, bottom)):
        for column, weight_x in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)  # False for nan, whose weight makes V nan
            index = torch.where(inside, row * w + column, 0).long()
            pixels = u.flatten(2).gather(2, index[:, None].expand(-1, u.shape[1], -1))
            v = v + pixels * (weight_x * weight_y * inside)[:, None]
    return v.unflatten(2, grid.shape[1:3])
