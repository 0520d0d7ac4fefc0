"""Where a run and a sweep stand, and how long they will take."""

import logging
import time
from math import prod
from typing import Any

import pytorch_lightning as pl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress(pl.Callback):
    """One bar over the steps of a run, with the time left, the loss and the error of the last block."""

    def __init__(self, name: str):
        self.name = name

    def on_train_start(self, trainer, module) -> None:
        done = trainer.current_epoch * module.schedule.block_steps
        self.bar = tqdm(
            total=module.schedule.steps, initial=done, desc=self.name, unit="step", dynamic_ncols=True, mininterval=1
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        entry = module.curve[-1]
        self.bar.set_postfix_str(f"loss {entry['train/loss']:.3f}, error {entry['train/error']:.1f} %", refresh=False)
        self.bar.update(int(entry["step"]) - self.bar.n)

    def teardown(self, trainer, module, stage) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class SweepProgress(Callback):
    """Before each job of a sweep: which of how many, and the time since the sweep began."""

    total = 0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
        overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
        sweeps = {o.get_key_element(): len(list(o.sweep_iterator())) for o in overrides if o.is_sweep_override()}
        self.total, self.start = prod(sweeps.values()), time.time()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self.total:
            spent = time.strftime("%H:%M:%S", time.gmtime(time.time() - self.start))
            print(f"[{config.hydra.job.num + 1} of {self.total}, {spent} since the start]", flush=True)
