"""Draws a warp, with PyTorch alone: U with the outline of the sampling grid, and V beside it."""

import torch
from jaxtyping import Float
from torch import Tensor

from stn.transformer import Warp

COLOUR = (1.0, 0.0, 0.0)  # of the outline


def draw_window(warp: Warp, side_px: int = 112) -> Float[Tensor, "b 3 h w"]:
    """One picture in [0, 1] per input: U with its window outlined on the left, V on the right, each a square.

    `warp` comes from `stn.trace`, on images in [0, 1] with one channel or three.  Raises ValueError on any other.

    >>> st = SpatialTransformer(fully_connected((1, 8, 8), Affine()), Affine())
    >>> [warp] = trace(st, torch.rand(2, 1, 8, 8))
    >>> draw_window(warp).shape
    torch.Size([2, 3, 112, 224])
    """
    if warp.u.dim() != 4 or warp.u.shape[1] not in (1, 3):
        raise ValueError(f"draw_window takes images (B, 1 or 3, H, W), got u {tuple(warp.u.shape)}")
    low, high = (each.item() for each in warp.u.aminmax())
    if low < 0 or high > 1:
        raise ValueError(
            f"draw_window takes images in [0, 1], got u from {low:.3g} to {high:.3g}: undo a normalisation"
        )
    u, v = (_scaled(each, side_px) for each in (warp.u, warp.v))
    x, y = (((_outline(warp) + 1) * side_px - 1) / 2).round().long().unbind(-1)
    inside = (x >= 0) & (x < side_px) & (y >= 0) & (y < side_px)
    image = torch.arange(len(u), device=u.device)[:, None].expand_as(x)
    u[image[inside], :, y[inside], x[inside]] = torch.tensor(COLOUR, device=u.device)
    return torch.cat([u, v], dim=3)


def _scaled(images: Tensor, side_px: int) -> Tensor:
    whole = images.float().clamp(0, 1).expand(-1, 3, -1, -1)
    return torch.nn.functional.interpolate(whole, (side_px, side_px)).clone()


def _outline(warp: Warp) -> Tensor:
    """Points (B, n, 2) along the border of the sampling grid, close enough together to form a line."""
    grid = warp.source.float().nan_to_num(9).unflatten(1, warp.v.shape[2:])  # 9 lies outside the picture
    around = torch.cat([grid[:, 0], grid[:, :, -1], grid[:, -1].flip(1), grid[:, :, 0].flip(1)], dim=1)
    lines = torch.nn.functional.interpolate(around.transpose(1, 2), 16 * around.shape[1], mode="linear")
    return lines.clamp(-9, 9).transpose(1, 2)
