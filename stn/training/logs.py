"""What a run sends to its loggers: one row per block, and now and then a picture of input, grid and output."""

import pytorch_lightning as pl
from torch import Tensor

from stn import draw
from stn.networks.svhn import compose
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
                warps = trace(module.network, self.probe.to(module.device))
                images = [warp for warp in warps if warp.u.shape[1] in (1, 3)]
                for warp in images:
                    picture = draw.warps(warp.u, warp.source, warp.v)
                    logger.log_image(f"{warp.name}/warp", [picture], step=step)
                if len(images) == 1 < len(warps):  # in series: the others act on its feature maps
                    matrices = compose([warp.theta for warp in warps])
                    boxes = [draw.box_tile(u, m, 112) for u, m in zip(images[0].u, matrices, strict=True)]
                    logger.log_image("composed/box", [draw.stack([boxes])], step=step)
