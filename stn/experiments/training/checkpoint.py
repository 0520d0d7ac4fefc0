"""Checkpoints that a kill at any moment cannot spoil, and that load plain values only."""

import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch


class Checkpoint(pl.Callback):
    """At most every `every_s` seconds, after a block: the whole state into `path`, in one step."""

    def __init__(self, path: Path, every_s: int | float):
        self.path = path
        self.every_s = every_s
        self.last = time.monotonic()

    def on_train_epoch_end(self, trainer, module) -> None:
        # one process may be a little later than another: all save or none
        if trainer.strategy.reduce_boolean_decision(time.monotonic() - self.last >= self.every_s, all=False):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint now."""
        scratch = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(scratch)
        if trainer.is_global_zero:
            os.replace(scratch, self.path)
        self.last = time.monotonic()


def check(path: Path) -> None:
    """Raise ValueError, in one line, unless `path` is a whole checkpoint of ours."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"state_dict", "optimizer_states", "loops", "curve", "seconds"} - set(state)
    except Exception as error:  # the unpickler meets arbitrary bytes, and raises whatever they lead to
        raise ValueError(
            f"the checkpoint {path} is damaged ({_first_line(error)}): delete it to start this run afresh"
        ) from None
    if missing:
        raise ValueError(
            f"the checkpoint {path} lacks {', '.join(sorted(missing))}: delete it to start this run afresh"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:100] or type(error).__name__
