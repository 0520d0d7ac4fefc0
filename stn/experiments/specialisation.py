"""Measures which of several parallel spatial transformers brings which channel's digits into a fixed pose (A.1).

The distortion of a test digit is known: the affine map D_c from the canvas to the digit of channel c.  Transformer k
shows this digit by the map F_kc = (D_c T_k)^-1 from the digit to the output.  Rotation, scale and position of F_kc are
the pose in which the classifier sees the digit.  A transformer that carries a channel shows all of its digits in one
pose.  Which pose does not matter, so residuals are taken from the median pose over the test set.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.diagnostics import collapsed
from stn.experiments.datasets.addition import MnistAddition
from stn.experiments.datasets.distortions import Similarity
from stn.sampler import regular_grid
from stn.transformer import trace

CORNERS = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)


def shown_pose(
    source: Float[Tensor, "b n 2"], to_digit: Float[Tensor, "b 6"], size: tuple[int, int]
) -> Float[Tensor, "b 2 3"]:
    """F, the map from a digit's square [-1, 1]^2 to the output of `size`, for one transformer's sampling grid `source`.

    For an affine transform it is exact.  Any other transform is replaced by its best affine fit around the digit: least
    squares over the output's pixels, weighted by exp(-|digit point|^2 / 2), so that pixels on the digit count most.
    """
    target = regular_grid(size, torch.float64)
    target = torch.cat([target, torch.ones_like(target[:, :1])], dim=1)
    a = to_digit.double().view(-1, 2, 3)
    digit = source.double() @ a[:, :, :2].mT + a[:, None, :, 2]
    squares = digit.square().sum(-1)
    weight = torch.exp((squares.amin(1, keepdim=True) - squares) / 2)[..., None]  # 1 at the nearest pixel
    gram, moment = target.T @ (weight * target), target.T @ (weight * digit)
    solved, singular = torch.linalg.solve_ex(gram, moment)
    m = solved.mT  # digit = m (target, 1)
    back, flat = torch.linalg.inv_ex(m[:, :, :2])
    if singular.any() or flat.any():
        raise ValueError(f"a window is flat in {int((singular + flat).bool().sum())} of {len(m)} images")
    return torch.cat([back, -back @ m[:, :, 2:]], dim=2)


def rotation_deg(f: Float[Tensor, "b 2 3"]) -> Float[Tensor, " b"]:
    """The rotation in the polar decomposition of F, clockwise on the screen."""
    return torch.rad2deg(torch.atan2(f[:, 1, 0] - f[:, 0, 1], f[:, 0, 0] + f[:, 1, 1]))


def residual_deg(angle: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Angles minus their circular mean, in [-180, 180)."""
    radians = torch.deg2rad(angle)
    mean = torch.atan2(radians.sin().mean(), radians.cos().mean())
    return torch.rad2deg((radians - mean + math.pi) % (2 * math.pi) - math.pi)


def residual_px(f: Float[Tensor, "b 2 3"], side_px: int) -> Float[Tensor, " b"]:
    """RMS distance, in pixels, between the corners of a digit's square and those in the median pose."""
    corners = CORNERS @ f.mT
    median = CORNERS @ f.median(dim=0).values.mT
    return (corners - median).square().sum(-1).mean(1).sqrt() * side_px / 2


def carried(poses: Float[Tensor, "k c b 2 3"], side_px: int) -> list[dict[str, int | float]]:
    """How constant the pose is in which transformer k shows the digits of each of two channels c.

    rotation_std_deg: spread of the shown rotation; scale_std_log2: of the scale; residual_px: median of `residual_px`;
    share_rotation, share_pose: the share of examples whose residual rotation, or pose, is smaller for c than for the
    other channel, 0.5 for a transformer that prefers neither.
    """
    turned = torch.stack([torch.stack([residual_deg(rotation_deg(f)) for f in of_k]) for of_k in poses])
    off_px = torch.stack([torch.stack([residual_px(f, side_px) for f in of_k]) for of_k in poses])
    scale = torch.linalg.det(poses[..., :2]).abs().sqrt().log2()
    rows: list[dict[str, int | float]] = []
    for k in range(poses.shape[0]):
        for c in range(2):
            values = {
                "rotation_std_deg": turned[k, c].square().mean().sqrt(),
                "scale_std_log2": scale[k, c].std(),
                "residual_px": off_px[k, c].median(),
                "share_rotation": (turned[k, c].abs() < turned[k, 1 - c].abs()).double().mean(),
                "share_pose": (off_px[k, c] < off_px[k, 1 - c]).double().mean(),
            }
            rows.append(
                {"transformer": k + 1, "channel": c + 1} | {name: round(v.item(), 4) for name, v in values.items()}
            )
    return rows


def measure(network: nn.Module, data: MnistAddition) -> dict[str, Any]:
    """`carried` over the test set, the spread of the digits' own rotation, and the distance between the two grids."""
    distortion = data.distortion
    if not isinstance(distortion, Similarity):
        raise ValueError(f"{type(distortion).__name__} has no pose to compare: choose data/distortion=r or rts")
    params = data.test_params()
    to_digit = [distortion.theta(of_channel) for of_channel in params]
    poses: list[Tensor] = []
    apart = []
    done = 0
    for u, _ in data.test_batches():
        part = slice(done, done := done + len(u))
        warps = trace(network, u)
        if lost := [str(k) for k, warp in enumerate(warps, 1) if collapsed(warp)]:
            raise ValueError(
                f"the window of transformer {' and '.join(lost)} has collapsed, so its digits have no pose"
            )
        size = (u.shape[2], u.shape[3])
        poses.append(torch.stack([torch.stack([shown_pose(w.source, d[part], size) for d in to_digit]) for w in warps]))
        apart.append((warps[0].source - warps[1].source).norm(dim=-1).mean(1) * u.shape[-1] / 2)
    return {
        "raw_rotation_std_deg": [round(p["angle_deg"].std().item(), 2) for p in params],
        "grids_apart_px": round(torch.cat(apart).mean().item(), 2),
        "carried": carried(torch.cat(poses, dim=2), distortion.canvas_px),
    }
