"""A run before it trains: checked, named, and finished already or locked.  Loads PyTorch, but nothing that trains."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stn.experiments import build, command, identity
from stn.experiments.datasets.fetch import sha256
from stn.experiments.results import records
from stn.experiments.training.check import check
from stn.experiments.training.environment import rank
from stn.experiments.training.lock import locked
from stn.experiments.training.schedule import Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A checked config, and what it is called; `overrides` are the words of the command line."""

    config: dict[str, Any]
    overrides: list[str]
    groups: dict[str, Any]
    revisions: dict[str, int]
    id: str

    @property
    def folder(self) -> Path:
        return Path(self.config["runs_dir"]) / self.id


def plan(config: dict[str, Any], overrides: list[str]) -> Job:
    """Check a resolved config and name its run.  Raises ValueError if it cannot be run."""
    check(config)
    groups = identity.asked(config)
    revisions = build.revisions(groups)
    also: dict[str, Any] = {} if config["precision"] == "auto" else {"precision": config["precision"]}
    if config["smoke"]:
        also["smoke"] = True
    name = (config["experiment_name"], config["schedule_name"], config["seed"], groups)
    digits = identity.of(*name, revisions, **also)
    return Job(config, identity.public(overrides), groups, revisions, identity.run_name(*name, digits))


def schedule_of(config: dict[str, Any]) -> Schedule:
    """The schedule and the optimiser of a config."""
    return Schedule(**config["schedule"], optimizer=config["optimizer"])


def run(config: dict[str, Any], overrides: list[str], wait_s: int | float = 0) -> records.Record:
    """Train, test and record what a resolved config says, or go on with it, or return its record if it is finished.

    Waits `wait_s` seconds for another process that is at this run.
    Raises ValueError on a config that cannot be run, Diverged (after recording it) where a number is none.
    """
    job = plan(config, overrides)
    if (record := finished(job)) is not None:
        return record
    from stn.experiments.training.run import train  # Lightning takes seconds to load

    if rank() > 0:  # a process that the first one started: it trains its share, and that is all
        train(job)
        return {}
    build.ensure(job.config["data"], job.config["data"]["root"])  # before a folder is made
    with locked(job.folder, wait_s):
        command.tell_when_stopped(lambda: safe(job))
        return finished(job) or train(job)


def finished(job: Job) -> records.Record | None:
    """The record of a run that has ended; None where there is none yet.

    Raises ValueError if it is another run's or of one that failed, or the weights are not those of the record.
    """
    path, weights = job.folder / "result.json", job.folder / "weights.safetensors"
    if not path.exists():
        return None
    record = records.read(path)
    asked = identity.same(record["config"], job.groups) and record["revisions"] == job.revisions
    if record["id"] != job.id or not asked:
        raise ValueError(f"{path} is the record of another run, {record['id']}: move it away, or delete {job.folder}")
    log.info("%s: %s already, in %s", job.id, summary(record), job.folder)
    if record["status"] == "failed":
        raise ValueError(f"{job.id} failed before: {record['failure']}; delete {job.folder} to try again")
    if not weights.exists():  # as after `bundle.py merge`
        log.warning("%s: its weights are not here; delete %s and run it again to make them", job.id, path)
    elif record.get("weights_sha256") not in (None, sha256(weights)):
        raise ValueError(f"the weights {weights} are not those of the record: delete {path} and run it again")
    return record


def summary(record: records.Record) -> str:
    """finished, test/error 1.23 % / failed: why."""
    if record["status"] == "failed":
        return f"failed: {record['failure']}"
    return "finished, " + ", ".join(
        f"{key} {value:.2f}{records.unit(key)}" for key, value in records.metrics_of(record).items()
    )


def safe(job: Job) -> str:
    """What of a run a stop leaves: the steps of its last checkpoint."""
    if (job.folder / "result.json").exists():
        return f"{job.id} has ended"
    path = job.folder / "unfinished.json"
    step, steps = records.read(path)["step"] if path.exists() else 0, job.config["schedule"]["steps"]
    return f"{step:,} of {steps:,} steps of {job.id} are safe"
