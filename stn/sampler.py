"""Target grid and differentiable sampling (Sect. 3.2 and 3.3), and the one place that fixes where a pixel lies.

Coordinates are normalised to [-1, 1] in the order (x, y) or (x, y, z); -1 and 1 are the outer *edges* of the border
pixels, so pixel i of W has its centre at (2 i + 1) / W - 1.  That is `align_corners=False` in PyTorch's words: a window
of scale 0.5 covers half of the image at every resolution.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ALIGN_CORNERS = False
KERNELS = ("bilinear", "nearest", "bicubic")


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the cache outlives it
def regular_grid(
    size: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Float[Tensor, "n d"]:
    """The regular grid G = {G_i} of pixel centres of an image of `size` (H, W) or (D, H, W), row by row.

    Computed in float64, so that it is the same on every device, and cached: do not write into it.
    """
    axes = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in size]
    grid = torch.stack([axis.flatten() for axis in reversed(torch.meshgrid(*axes, indexing="ij"))], dim=-1)
    return grid.to(dtype=dtype, device=device)


def sample(
    u: Float[Tensor, "b c *size"], source: Float[Tensor, "b n d"], size: tuple[int, ...], kernel: str = "bilinear"
) -> Float[Tensor, "b c *out"]:
    """V of eq. (3): u (B, C, H, W) or (B, C, D, H, W) read at the source points, 0 outside of the image.

    `size` is the output's (H', W') or (D', H', W'), with H' W' = N.  Kernels:
    `bilinear`, eq. (5), trilinear in 3D; sub-gradients of eq. (6) and (7);
    `nearest`, the integer kernel of eq. (4): its gradient in u is 1 at the pixel copied, its gradient in the source
    points is 0 everywhere, so no localisation network before it learns where to look;
    `bicubic`, Keys' cubic convolution with a = -0.75, 2D only; it overshoots: V may leave the range of u.

    Computed in float32 at least; V has the dtype of u.  Raises ValueError on an unknown kernel and on shapes that do
    not fit.
    """
    dims = u.dim() - 2
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
    if dims not in (2, 3) or source.dim() != 3 or len(size) != dims or source.shape[2] != dims:
        raise ValueError(
            f"sample takes u (B, C, H, W) with source (B, N, 2) and size (H', W'), or one dimension more of each; "
            f"got u {tuple(u.shape)}, source {tuple(source.shape)}, size {tuple(size)}"
        )
    if source.shape[0] != u.shape[0] or source.shape[1] != torch.Size(size).numel():
        raise ValueError(
            f"u {tuple(u.shape)} and size {tuple(size)} need source points "
            f"({u.shape[0]}, {torch.Size(size).numel()}, {dims}), got {tuple(source.shape)}"
        )
    if kernel == "bicubic" and dims == 3:
        raise ValueError(f"kernel 'bicubic' is for images, u is a volume {tuple(u.shape)}: choose bilinear or nearest")
    dtype = torch.promote_types(u.dtype, torch.float32)
    grid = source.to(dtype).unflatten(1, size)
    with torch.autocast(u.device.type, enabled=False):
        v = F.grid_sample(u.to(dtype), grid, mode=kernel, padding_mode="zeros", align_corners=ALIGN_CORNERS)
    return v.to(u.dtype)
