"""Monitors every spatial transformer's window, once per block, and warns when it collapses."""

import logging

import pytorch_lightning as pl
from torch import Tensor

from stn.diagnostics import collapsed, health
from stn.transformer import trace

log = logging.getLogger(__name__)


class Health(pl.Callback):
    """Adds `<transformer>/det`, `/out_of_image`, `/theta_distance` to every block's entry; warns once at collapse."""

    def __init__(self, probe: Tensor):
        self.probe = probe
        self.warned = False

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        for warp in trace(module.network, self.probe.to(module.device)):
            measured = health(warp)
            module.curve[-1] |= {f"{warp.name}/{key}": value for key, value in measured.items()}
            if not self.warned and collapsed(warp):
                self.warned = True
                log.warning(
                    "%s has collapsed at step %d: determinant %.3g, %.0f %% of its window outside the image. "
                    "Lower schedule.localisation_lr, and keep the background of the input at 0",
                    warp.name, module.curve[-1]["step"], measured["det"], 100 * measured["out_of_image"],
                )  # fmt: skip
