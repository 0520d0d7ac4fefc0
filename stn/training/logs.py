"""What a run sends to its loggers: one row per block, and now and then a picture of input, grid and output."""

import pytorch_lightning as pl
from torch import Tensor

from stn import draw
from stn.transformer import trace


class Log(pl.Callback):
    """After each block its entry of the curve; `pictures` times, evenly over training, how the probe is warped."""

    def __init__(self, probe: Tensor, pictures: int):
        self.probe = probe
        self.pictures = pictures

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        entry = dict(module.curve[-1])
        step = int(entry.pop("step"))
        done, blocks = module.current_epoch + 1, module.schedule.blocks
        picture_due = done * self.pictures // blocks > (done - 1) * self.pictures // blocks
        for logger in trainer.loggers:
            logger.log_metrics(entry, step=step)
            if picture_due and hasattr(logger, "log_image"):
                for warp in trace(module.network, self.probe.to(module.device)):
                    rows = draw.warps if warp.v.dim() == 4 else draw.volume_warps
                    picture = rows(warp.u, warp.source, warp.v)
                    logger.log_image(f"{warp.name}/warp", [picture], step=step)
