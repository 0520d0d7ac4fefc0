"""Where a run and a sweep stand, and how long they will take."""

import time
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from tqdm import tqdm

from stn.results.records import Record, read_all, write
from stn.results.tables import seconds_per_step


class Progress(pl.Callback):
    """One bar over the steps of a run, with the time left and what the objective reports of the last block."""

    def __init__(self, name: str):
        self.name = name

    def on_train_start(self, trainer, module) -> None:
        done = trainer.current_epoch * module.schedule.block_steps
        self.bar = tqdm(
            total=module.schedule.steps, initial=done, desc=self.name, unit="step", dynamic_ncols=True, mininterval=1
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        entry = module.curve[-1]
        shown = {key.removeprefix("train/"): value for key, value in entry.items() if key.startswith("train/")}
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
        self.bar.update(int(entry["step"]) - self.bar.n)

    def teardown(self, trainer, module, stage) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class Unfinished(pl.Callback):
    """The record of a run as far as it goes, for the status of its table: at the start and every `every_s` seconds."""

    def __init__(self, path: Path, record: Record, every_s: float):
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
        so_far = {"status": "unfinished", "metrics": {}, "step": step, "seconds": round(module.seconds, 2)}
        write(self.path, self.record | so_far)
        self.last = time.monotonic()


class SweepProgress(Callback):
    """Before each job of a sweep: which of how many, what it is, the time since the start and about how long is left.

    The estimate is what the committed records of the same cells took a step, scaled by this machine's pace so far.
    """

    def __init__(self, records: str):
        self.records = Path(records)
        self.jobs: list[list[str]] = []
        self.ran: list[tuple[float, float]] = []  # expected and real seconds of the jobs that had something to do

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
        ((*self.jobs,),) = BasicSweeper.split_arguments(overrides, None)
        known = read_all(self.records)
        costs = [seconds_per_step(known, job) for job in self.jobs]
        mean = fmean([cost for cost in costs if cost] or [0])
        self.expected = [config.schedule.steps * (cost or mean) for cost in costs]
        self.start = time.time()
        print(f"{len(self.jobs)} runs{self._left(0)}; finished ones are skipped, unfinished ones resumed", flush=True)

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        if self.jobs:
            number = config.hydra.job.num
            self.job_start = time.time()
            spent = _clock(self.job_start - self.start)
            print(f"[{number + 1} of {len(self.jobs)}] {' '.join(self.jobs[number])}: "
                  f"{spent} since the start{self._left(number)}", flush=True)  # fmt: skip

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        if self.jobs and (took := time.time() - self.job_start) > 5:  # else it was finished before
            self.ran.append((self.expected[config.hydra.job.num], took))

    def _left(self, number: int) -> str:
        expected, took = map(sum, zip(*self.ran, strict=True)) if self.ran else (0.0, 0.0)
        left = sum(self.expected[number:]) * (took / expected if expected else 1)
        return f", about {_clock(left)} left" if left else ""


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
