"""Where a sweep stands, and how long it will take."""

import time
from datetime import timedelta
from itertools import product
from statistics import fmean
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback

from stn.experiments.command import ROOT
from stn.experiments.results import records
from stn.experiments.results.tables import seconds_per_step


def jobs(words: list[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, in Hydra's order: the last word varies fastest."""
    choices = []
    for override in OverridesParser.create().parse_overrides(words):
        key = override.get_key_element()
        values = (
            override.sweep_string_iterator() if override.is_discrete_sweep() else [override.get_value_element_as_str()]
        )
        choices.append([f"{key}={value}" for value in values])
    return [list(job) for job in product(*choices)]


class SweepProgress(Callback):
    """Before each job of a sweep: which of how many, what it is, the time since the start and about how long is left.

    The estimate is what the kept records of the same cells took a step, scaled by this machine's pace so far.
    """

    def __init__(self) -> None:
        self.jobs: list[list[str]] = []
        self.ran: list[tuple[float, float]] = []  # expected and real seconds of the jobs that had something to do

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        self.jobs = jobs([*params, *config.hydra.overrides.task])
        known = records.read_kept(ROOT / "results")
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
