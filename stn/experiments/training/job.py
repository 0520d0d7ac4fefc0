"""A run before training: checked, named, locked, or already finished.  Loads PyTorch, but no training code."""

import logging
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stn.experiments import build, command, identity
from stn.experiments.datasets.fetch import sha256
from stn.experiments.results import records
from stn.experiments.results.tables import is_neutral
from stn.experiments.training.check import check
from stn.experiments.training.environment import rank
from stn.experiments.training.lock import locked
from stn.experiments.training.schedule import Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A checked config and the name of its run; `overrides` are those of the command line."""

    config: dict[str, Any]
    overrides: list[str]
    groups: dict[str, Any]
    revisions: dict[str, int]
    id: str

    @property
    def folder(self) -> Path:
        return Path(self.config["runs_dir"]) / self.id


def plan(config: dict[str, Any], overrides: list[str]) -> Job:
    """Check a resolved config and name its run.  Raises ValueError if it cannot run."""
    check(config)
    groups = identity.asked(config)
    revisions = build.revisions(groups)
    also: dict[str, Any] = {} if config["precision"] == "auto" else {"precision": config["precision"]}
    if config["smoke"]:
        also["smoke"] = True
    name = (config["experiment_name"], config["schedule_name"], config["seed"], groups)
    digits = identity.of(*name, revisions, **also)
    return Job(config, identity.public(overrides), groups, revisions, identity.run_name(*name, digits))


def redundant(job: Job) -> list[str]:
    """The overrides without which the run would be the same, such as a stated default; none outside of run.py."""
    needed = job.overrides
    for word in filterfalse(is_neutral, job.overrides) if GlobalHydra.instance().is_initialized() else ():
        fewer = [other for other in needed if other != word]
        try:
            config: Any = OmegaConf.to_container(compose("config", fewer), resolve=True)
            if plan(config, fewer).id == job.id:
                needed = fewer
        except (HydraException, OmegaConfBaseException, ValueError):  # the others need this word
            continue
    return [word for word in job.overrides if word not in needed]


def schedule_of(config: dict[str, Any]) -> Schedule:
    """The schedule and the optimiser of a config."""
    return Schedule(**config["schedule"], optimizer=config["optimizer"])


def run(config: dict[str, Any], overrides: list[str], wait_s: int | float = 0) -> records.Record:
    """Train, test and record the run of a resolved config; resume it, or return its record, if it exists.

    Waits up to `wait_s` seconds for another process of the same run.  Raises ValueError on a config that cannot run,
    and Diverged, after recording it, if a number becomes NaN or infinite.
    """
    job = plan(config, overrides)
    if (record := finished(job)) is not None:
        return record
    from stn.experiments.training.run import train  # loads Lightning, which takes seconds

    if rank() > 0:  # started by the first process: only trains its share
        train(job)
        return {}
    build.ensure(job.config["data"], job.config["data"]["root"])  # before a folder is made
    with locked(job.folder, wait_s):
        command.tell_when_stopped(lambda: safe(job))
        return finished(job) or train(job)


def finished(job: Job) -> records.Record | None:
    """The record of a finished run, None if there is none yet.

    Raises ValueError if the record is another run's, if the run failed, or if the weights do not match the record.
    """
    path, weights = job.folder / "result.json", job.folder / "weights.safetensors"
    if not path.exists():
        return None
    record = records.read(path)
    asked = identity.same(record["config"], job.groups) and record["revisions"] == job.revisions
    if record["id"] != job.id or not asked:
        raise ValueError(f"{path} is the record of another run, {record['id']}: move it away, or delete {job.folder}")
    log.info("%s: already %s, in %s", job.id, summary(record), job.folder)
    if record["status"] == "failed":
        raise ValueError(f"{job.id} failed before: {record['failure']}; delete {job.folder} to try again")
    if not weights.exists():  # as after `bundle.py merge`
        log.warning("%s: its weights are missing; to make them, delete %s and run it again", job.id, path)
    elif record.get("weights_sha256") not in (None, sha256(weights)):
        raise ValueError(f"the weights {weights} are not those of the record: delete {path} and run it again")
    return record


def summary(record: records.Record) -> str:
    """finished, test/error 1.23 %; or failed: the reason."""
    if record["status"] == "failed":
        return f"failed: {record['failure']}"
    return "finished, " + ", ".join(
        f"{key} {value:.2f}{records.unit(key)}" for key, value in records.metrics_of(record).items()
    )


def safe(job: Job) -> str:
    """What a stop leaves of a run: the steps up to its last checkpoint."""
    if (job.folder / "result.json").exists():
        return f"{job.id} has ended"
    path = job.folder / "unfinished.json"
    step, steps = records.read(path)["step"] if path.exists() else 0, job.config["schedule"]["steps"]
    return f"{step:,} of {steps:,} steps of {job.id} are safe"
