"""The progress of a sweep: one line per run when it ends, and an estimate of the time left."""

import logging
import time
from datetime import timedelta
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf.errors import OmegaConfBaseException

from stn.experiments import launchers
from stn.experiments.command import ROOT, tell_when_stopped
from stn.experiments.identity import public
from stn.experiments.results import records
from stn.experiments.results.tables import seconds_per_step
from stn.experiments.training.environment import of_this_kind
from stn.experiments.training.lock import held

Words = frozenset[str]


def jobs(words: list[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, in Hydra's order: the last word varies fastest."""
    choices: dict[str, list[str]] = {}  # a repeated key keeps its first position and its last value
    for override in OverridesParser.create().parse_overrides(words):
        key = override.get_key_element()
        values = (
            override.sweep_string_iterator() if override.is_discrete_sweep() else [override.get_value_element_as_str()]
        )
        choices[key] = [f"{key}={value}" for value in values]
    return [list(job) for job in product(*choices.values())]


class SweepProgress(Callback):
    """One line per run when it ends: its number, its settings, its result, and about how long the others will take.

    The estimate uses the time per step in kept records of the same cells, this machine's pace in the finished runs of
    this sweep, the last run's time outside its steps (start-up, test), and the number of runs at a time.  All of this
    is read from the runs' folders, so it works with every launcher.
    """

    def __init__(self) -> None:
        self.jobs: list[list[str]] = []

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        self.jobs = jobs([*params, *config.hydra.overrides.task])
        kept = [r for r in of_this_kind(records.read_kept(ROOT / "results")) if r["status"] == "finished"]
        costs = [seconds_per_step(kept, job) for job in self.jobs]
        mean = fmean([cost for cost in costs if cost] or [1])
        self.expected = {frozenset(public(job)): _steps(_settings(job)) * (cost or mean)
                         for job, cost in zip(self.jobs, costs, strict=True)}  # fmt: skip
        self.runs = Path(config.runs_dir).absolute()
        self.start = time.time()
        self.on_slurm = config.hydra.runtime.choices["hydra/launcher"] in launchers.SLURM
        tell_when_stopped(self.safe)

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        self.job_start = time.time()
        if self.jobs:
            for name in ("job", "run"):  # they report the folder and the result of a single run
                logging.getLogger(f"stn.experiments.training.{name}").setLevel(logging.WARNING)

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        if self.jobs:
            number, took = config.hydra.job.num, time.time() - self.job_start
            result, training = "failed", 0.0
            if job_return.status == JobStatus.COMPLETED:
                record = job_return.return_value
                result = ", ".join(f"{key} {value:.2f} %" for key, value in records.metrics_of(record).items())
                if (self.runs / record["id"] / "result.json").stat().st_mtime < self.job_start:
                    result += ", as before"
                else:
                    from stn.experiments.training.run import LOADED

                    begun = record["sessions"][-1]["from"] if record["sessions"] else record["steps"]
                    training = record["seconds"] * (1 - begun / record["steps"])
                    result += f" in {_clock(took)}" + (f", from step {begun:,} on" if begun else "")
                    took = time.time() - max(self.job_start, LOADED)
            print(f"[{number + 1} of {len(self.jobs)}] {self._what(number)}: {result}"
                  f"{self._left(max(0.0, took - training))}", flush=True)  # fmt: skip

    def _what(self, number: int) -> str:
        """The overrides of a job that differ between jobs."""
        shared = set.intersection(*map(set, self.jobs)) if len(self.jobs) > 1 else set()
        return " ".join(word for word in self.jobs[number] if word not in shared)

    def safe(self) -> str:
        """What a stop leaves of this sweep, in words."""
        ended = len(self._ended())
        parts = [f"{r['step']:,} of {r['steps']:,} steps of {r['id']}" for r in self._unfinished().values()]
        still = "; the jobs of SLURM go on, and scancel ends them" if self.on_slurm else ""
        return f"{ended} of {len(self.jobs)} runs have ended; safe: {', '.join(parts) or 'no others'}{still}"

    def _ended(self) -> dict[Words, records.Record]:
        found: list[records.Record] = []
        for smoke in (False, True):
            found += records.read_runs(self.runs, damaged=[], smoke=smoke)
        return {_known_by(r): r for r in found if _known_by(r) in self.expected}

    def _unfinished(self) -> dict[Words, records.Record]:
        """The records of unfinished runs; `held` says whether a process is working on them."""
        begun = [record | {"held": held(folder)} for folder, record in records.read_unfinished(self.runs)]
        return {_known_by(r): r for r in begun if _known_by(r) in self.expected}

    def _left(self, beside_s: float) -> str:
        """About how long the remaining runs will take, each `beside_s` longer than its steps."""
        ended, begun = self._ended(), self._unfinished()
        new = [words for words, record in ended.items()
               if record["status"] == "finished"
               and (self.runs / record["id"] / "result.json").stat().st_mtime >= self.start]  # fmt: skip
        to_go = self.expected.keys() - ended.keys()
        if not new or not to_go:
            return ""
        pace = sum(ended[words]["seconds"] for words in new) / sum(self.expected[words] for words in new)
        seconds = 0.0
        for words in to_go:
            share = 1 - begun[words]["step"] / begun[words]["steps"] if words in begun else 1.0
            seconds += pace * self.expected[words] * share + beside_s
        at_once = min(len(to_go), 1 + sum(record["held"] for record in begun.values()))
        return f"; about {_clock(seconds / at_once)} left for {len(to_go)}"


def _known_by(record: records.Record) -> Words:
    """The overrides of a run, in the form of `SweepProgress.expected`."""
    return frozenset(public(record["overrides"]))


def _settings(words: list[str]) -> Words:
    """The overrides of a job that may decide its number of steps: neither its seed nor its column."""
    return frozenset(word for word in words if not word.startswith(("seed=", "data", "hydra")))


@cache
def _steps(words: Words) -> int:
    """The number of steps of a job; 1 if its config cannot be composed, an error that the job itself reports."""
    try:
        return int(compose("config", list(words)).schedule.steps)
    except (HydraException, OmegaConfBaseException, ValueError):
        return 1


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
