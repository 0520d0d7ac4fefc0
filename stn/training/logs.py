"""What a run sends to its loggers: one row per block, and now and then a picture of input, grid and output."""

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from stn import draw
from stn.transformer import Warp, trace


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
                warps = trace(module.network, self.probe.to(module.device))
                if len(warps) > 1 and all(warp.u is warps[0].u for warp in warps) and warps[0].u.shape[1] in (1, 3):
                    logger.log_image("windows", [windows(warps)], step=step)
                for warp in warps:
                    picture = draw.warps(warp.u, warp.source, warp.v)
                    logger.log_image(f"{warp.name}/warp", [picture], step=step)


def windows(warps: list[Warp]) -> Image.Image:
    """One row: the inputs, and on them what each of several parallel transformers frames (Table 3 right)."""
    frames = torch.stack([torch.cat([w.source.amin(1), w.source.amax(1)], dim=1) for w in warps], dim=1)
    return draw.stack([[draw.boxes(u, boxes, 112) for u, boxes in zip(warps[0].u, frames, strict=True)]])
