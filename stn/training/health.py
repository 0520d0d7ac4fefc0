"""Is the localisation network alive?  What every spatial transformer's window does, logged once a block."""

import logging

import pytorch_lightning as pl
import torch
from torch import Tensor

from stn.transformer import SpatialTransformer, Warp, trace

log = logging.getLogger(__name__)
MAX_OUT_OF_IMAGE = 0.75  # beyond it most of V is background: the window has left the image or zoomed far out
MIN_DETERMINANT = 0.01  # below it the window covers less than 1 % of the image


def determinant(source: Tensor, size: tuple[int, ...]) -> Tensor:
    """Mean Jacobian determinant of the map target -> source over a grid (B, H' W', 2) or (B, D' H' W', 3): (B,).

    By differences.  1 keeps areas or volumes, 0.25 is a zoom in by 2 (0.125 in 3D), negative values mirror.
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


def measure(warp: Warp, identity: tuple[float, ...]) -> dict[str, float]:
    """det, out_of_image (the share of V's points outside of U) and |theta - identity| as means over a batch."""
    out = (warp.source.abs() > 1).any(-1).float().mean()
    distance = (warp.theta - torch.tensor(identity).to(warp.theta)).norm(dim=1).mean()
    det = determinant(warp.source, tuple(warp.v.shape[2:])).mean()
    return {"det": det.item(), "out_of_image": out.item(), "theta_distance": distance.item()}


class Health(pl.Callback):
    """Adds `<transformer>/det`, `/out_of_image`, `/theta_distance` to every block's entry; warns once at collapse."""

    def __init__(self, probe: Tensor):
        self.probe = probe
        self.warned = False

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        identities = {
            name: m.transform.identity
            for name, m in module.network.named_modules()
            if isinstance(m, SpatialTransformer)
        }
        for warp in trace(module.network, self.probe.to(module.device)) if identities else ():
            health = measure(warp, identities[warp.name])
            module.curve[-1] |= {f"{warp.name}/{key}": value for key, value in health.items()}
            # not of volumes: a section through an extruded digit is the digit, so a window may well become a plane
            flat = warp.v.dim() == 4 and abs(health["det"]) < MIN_DETERMINANT
            if not self.warned and (flat or health["out_of_image"] > MAX_OUT_OF_IMAGE):
                self.warned = True
                log.warning(
                    "%s has collapsed at step %d: determinant %.3g, %.0f %% of its window outside of the image. "
                    "Lower schedule.localisation_lr, and keep the background of the input at 0",
                    warp.name, module.curve[-1]["step"], health["det"], 100 * health["out_of_image"],
                )  # fmt: skip
