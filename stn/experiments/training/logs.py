"""What a run sends to its loggers: one row per block, and now and then a picture of input, grid and output."""

import logging
import os
from functools import reduce
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_class, instantiate
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from stn import Affine
from stn.experiments import draw
from stn.transformer import Warp, trace

SUMMARY = ("status", "params", "seconds", "samples_per_s", "failed_step")  # of the record, next to its metrics
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
            if picture_due and isinstance(logger, WandbLogger):
                for key, picture in pictures(trace(module.network, self.probe.to(module.device))).items():
                    logger.log_image(key, [picture], step=step)


def pictures(warps: list[Warp]) -> dict[str, Image.Image]:
    """What every transformer of a network did to a batch, and the windows of several on one image."""
    found = {}
    images = [warp for warp in warps if warp.u.shape[1] in (1, 3)]
    if len(warps) > 1 and len(images) == len(warps) and all(warp.u is warps[0].u for warp in warps):
        found["windows"] = windows(warps)
    for warp in warps:
        rows = draw.warps if warp.v.dim() == 4 else draw.volume_warps
        found[f"{warp.name}/warp"] = rows(warp.u, warp.source, warp.v)
    if len(images) == 1 < len(warps):  # in series: the others act on feature maps of the first one's output
        theta = reduce(Affine().compose, [warp.theta for warp in warps]).view(-1, 2, 3)
        boxes = [draw.box_tile(u, m, 112) for u, m in zip(warps[0].u, theta, strict=True)]
        found["composed/box"] = draw.stack([boxes])
    return found


def windows(warps: list[Warp]) -> Image.Image:
    """One row: the inputs, and on them what each of several parallel transformers frames (Table 3 right)."""
    frames = torch.stack([torch.cat([w.source.amin(1), w.source.amax(1)], dim=1) for w in warps], dim=1)
    return draw.stack([[draw.boxes(u, boxes, 112) for u, boxes in zip(warps[0].u, frames, strict=True)]])


def make_logger(settings: dict[str, Any], folder: Path, config: dict[str, Any], group: str) -> Any:
    """The logger of a config's `logger`, which writes below `folder`; a W&B run also gets `config` and its group."""
    if issubclass(get_class(settings["_target_"]), WandbLogger):
        return wandb_logger(settings["project"], settings["settings"], folder, config, group)
    return instantiate(settings, save_dir=folder)


def wandb_logger(
    project: str, settings: dict[str, Any], folder: Path, config: dict[str, Any], group: str
) -> WandbLogger:
    """The W&B run of this folder, whose name is its id: a killed run that goes on continues the same W&B run.

    Offline where no account is set up, and, after one line that says so, where the server does not answer or refuses.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    # the agent of a W&B sweep names its runs itself
    name = {} if "WANDB_SWEEP_ID" in os.environ else {"id": folder.name, "name": folder.name}
    run: dict[str, Any] = {
        "project": project, "settings": settings, "dir": folder, "config": config, "group": group, "resume": "allow",
        **name,
    }  # fmt: skip
    try:
        if "WANDB_MODE" not in os.environ:
            run["mode"] = "online" if wandb.login(prompt=False) else "offline"
        experiment = wandb.init(**run)
    except (wandb.Error, ValueError) as error:
        log.warning("%s", _unsent(" ".join(str(error).split()), folder))
        wandb.teardown()
        experiment = wandb.init(**run | {"mode": "offline"})
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=experiment)


def finish(logger: Any, record: dict[str, Any], folder: Path) -> None:
    """The record's figures, as the last of a logged run."""
    logger.log_metrics(record["metrics"], step=record["steps"])
    if not isinstance(logger, WandbLogger):
        return logger.finalize(record["status"])
    try:
        run = logger.experiment
        run.summary.update({key: record[key] for key in SUMMARY if key in record})
        run.finish(exit_code=0 if record["status"] == "finished" else 1)
    except Exception as error:  # of a server that has gone or of wandb's own process: the record is written already
        log.warning("%s", _unsent(" ".join(str(error).split()) or type(error).__name__, folder))
    return None


def _unsent(why: str, folder: Path) -> str:
    return f"W&B: {why}; the run stays on disk: send it later with `wandb sync {folder}/wandb/*run-*`"
