"""What a run logs: one row per block, and some pictures of input, grid, output and class."""

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from stn import Affine
from stn.experiments import draw
from stn.experiments.results import records
from stn.experiments.training import wandb_run
from stn.experiments.training.answers import Answers, names
from stn.experiments.training.check import WANDB
from stn.experiments.training.validation import due
from stn.transformer import Warp, trace

SIDE_PX = 112


class Log(pl.Callback):
    """Logs each block's entry of the curve, and `pictures` pictures, evenly over training, of the probe's warps.

    `labels` are the probe's classes, None if it has none.
    """

    def __init__(self, probe: Tensor, labels: Tensor | None, pictures: int):
        self.probe = probe
        self.labels = labels
        self.pictures = pictures

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        entry = dict(module.curve[-1])
        step = int(entry.pop("step"))
        for logger in trainer.loggers:
            logger.log_metrics(entry, step=step)
        if trainer.loggers and due(self.pictures, module.current_epoch, module.schedule.blocks):
            for key, picture in look(module.network, self.probe.to(module.device), self.labels).items():
                for logger in trainer.loggers:
                    log_picture(logger, key, picture, step)


def log_picture(logger: Logger, key: str, picture: Image.Image, step: int) -> None:
    """Log a picture, if the logger supports it."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")


def look(network: nn.Module, u: Tensor, labels: Tensor | None) -> dict[str, Image.Image]:
    """Pictures of a network's transformers on a batch, by name, with the predicted classes if there are labels."""
    outputs: list[Tensor] = []
    hook = network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = pictures(trace(network, u))
    hook.remove()
    if labels is None:
        return found
    strip = draw.stack([draw.classes(names(outputs[0].argmax(-1)), names(labels), SIDE_PX)])
    return {key: draw.below(picture, strip) for key, picture in found.items()}


def pictures(warps: list[Warp]) -> dict[str, Image.Image]:
    """A picture of each warp, and of the windows of several transformers on one image."""
    found = {}
    images = [warp for warp in warps if warp.u.shape[1] in (1, 3)]
    if len(warps) > 1 and len(images) == len(warps) and all(warp.u is warps[0].u for warp in warps):
        found["windows"] = windows(warps)
    for warp in warps:
        rows = draw.warps if warp.v.dim() == 4 else draw.volume_warps
        found[f"{warp.name}/warp"] = rows(warp.u, warp.source, warp.v)
    if len(images) == 1 < len(warps):  # in series: the others act on feature maps of the first one's output
        theta = reduce(Affine().compose, [warp.theta for warp in warps]).view(-1, 2, 3)
        boxes = [draw.box_tile(u, m, SIDE_PX) for u, m in zip(warps[0].u, theta, strict=True)]
        found["composed/box"] = draw.stack([boxes])
    return found


def windows(warps: list[Warp]) -> Image.Image:
    """One row: the inputs with the windows of several parallel transformers (Table 3 right)."""
    frames = torch.stack([torch.cat([w.source.amin(1), w.source.amax(1)], dim=1) for w in warps], dim=1)
    return draw.stack([[draw.boxes(u, boxes, SIDE_PX) for u, boxes in zip(warps[0].u, frames, strict=True)]])


def make_loggers(
    settings: dict[str, Any], folder: Path, config: dict[str, Any], record: records.Record
) -> list[Logger]:
    """The loggers of a config's `logger`, which write into `folder`; each also gets the config."""
    found: list[Logger] = []
    for one in settings.values():
        if one["_target_"] == WANDB:
            found.append(wandb_run.begin(one["project"], one["settings"], folder, config, record))
        else:
            found.append(instantiate(one, save_dir=folder))
            found[-1].log_hyperparams(config)
    return found


def finish(
    loggers: list[Logger], record: records.Record, row: dict[str, Any] | None, answers: Answers, folder: Path
) -> None:
    """Log the record's figures at the end of a run."""
    for logger in loggers:
        if record["metrics"]:
            logger.log_metrics(records.metrics_of(record), step=record["steps"])
        if isinstance(logger, WandbLogger):
            wandb_run.end(logger, record, row, answers, folder)
        else:
            logger.finalize(record["status"])
