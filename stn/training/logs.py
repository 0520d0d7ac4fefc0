"""What a run sends to its loggers: one row per block, and now and then a picture of input, grid and output."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from stn import draw
from stn.transformer import trace

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
                for warp in trace(module.network, self.probe.to(module.device)):
                    picture = draw.warps(warp.u, warp.source, warp.v)
                    logger.log_image(f"{warp.name}/warp", [picture], step=step)


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
