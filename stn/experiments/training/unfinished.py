"""The record of a run as far as it goes, for the status of its table."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from stn.experiments.results.records import Record, write


class Unfinished(pl.Callback):
    """Writes it at the start and every `every_s` seconds."""

    def __init__(self, path: Path, record: Record, every_s: int | float):
        self.path = path
        self.record = record
        self.every_s = every_s

    def on_train_start(self, trainer, module) -> None:
        self.write(module)

    def on_train_epoch_end(self, trainer, module) -> None:
        if time.monotonic() - self.last >= self.every_s:
            self.write(module)

    def write(self, module: Any) -> None:
        """Write it now."""
        step = int(module.curve[-1]["step"]) if module.curve else 0
        times = {"seconds": round(module.clock.seconds, 2), "core_seconds": round(module.clock.core_seconds, 2)}
        so_far = {"status": "unfinished", "metrics": {}, "step": step, **times}
        write(self.path, self.record | so_far)
        self.last = time.monotonic()
