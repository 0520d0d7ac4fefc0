"""What a run sends to its loggers: one row per block, and now and then a picture of input, grid and output."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from stn import draw
from stn.networks.svhn import compose
from stn.transformer import Warp, trace

SUMMARY = ("params", "seconds", "samples_per_s", "failed_step")  # of the record, beside its metrics
log = logging.getLogger(__name__)


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
                    rows = draw.warps if warp.v.dim() == 4 else draw.volume_warps
                    logger.log_image(f"{warp.name}/warp", [rows(warp.u, warp.source, warp.v)], step=step)
                if len([warp for warp in warps if warp.u.shape[1] in (1, 3)]) == 1 < len(warps):
                    # in series: the others act on feature maps of the first one's output
                    matrices = compose([warp.theta for warp in warps])
                    boxes = [draw.box_tile(u, m, 112) for u, m in zip(warps[0].u, matrices, strict=True)]
                    logger.log_image("composed/box", [draw.stack([boxes])], step=step)


def windows(warps: list[Warp]) -> Image.Image:
    """One row: the inputs, and on them what each of several parallel transformers frames (Table 3 right)."""
    frames = torch.stack([torch.cat([w.source.amin(1), w.source.amax(1)], dim=1) for w in warps], dim=1)
    return draw.stack([[draw.boxes(u, boxes, 112) for u, boxes in zip(warps[0].u, frames, strict=True)]])


def wandb_logger(make: Callable[..., Any], folder: Path, config: dict[str, Any], group: str) -> Any:
    """The W&B run of this folder, `make` being a WandbLogger without these: its id is the folder's name.

    A killed run that goes on continues the same W&B run.  Offline where no account is set up, and, after one line that
    says so, where the server does not answer or refuses.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    # the agent of a W&B sweep names its runs itself
    name = {} if "WANDB_SWEEP_ID" in os.environ else {"id": folder.name, "name": folder.name}
    made = {"save_dir": folder, "config": config, "group": group, **name}
    try:
        if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
            wandb.setup(settings=wandb.Settings(mode="offline"))
        logger = make(**made)
        logger._wandb_init.pop("anonymous", None)  # Lightning 2.6 passes what wandb 0.31 warns of
        logger.experiment  # noqa: B018  # starts the run
    except (wandb.Error, ValueError) as error:
        log.warning("%s", _unsent(" ".join(str(error).split()), folder))
        wandb.teardown()
        logger = make(**made, mode="offline")
        logger._wandb_init.pop("anonymous", None)
    return logger


def finish(logger: Any, record: dict[str, Any], folder: Path) -> None:
    """The record's figures, as the last of a W&B run."""
    try:
        logger.log_metrics(record.get("metrics", {}), step=record["steps"])
        run = logger.experiment
        status = {"status": record.get("status", "stopped")}
        run.summary.update(status | {key: record[key] for key in SUMMARY if key in record})
        run.finish(exit_code=0 if record.get("status") == "finished" else 1)
    except Exception as error:  # of a server that has gone or of wandb's own process: the record is written already
        log.warning("%s", _unsent(" ".join(str(error).split()) or type(error).__name__, folder))


def _unsent(why: str, folder: Path) -> str:
    return f"W&B: {why}; the run stays on disk: send it later with `wandb sync {folder}/wandb/*run-*`"
