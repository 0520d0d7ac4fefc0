"""One run from its config to its record: check, name, train, test, record."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from stn.experiments import build, identity
from stn.experiments.networks.sizing import num_params
from stn.experiments.results import records
from stn.experiments.training import checkpoint, environment
from stn.experiments.training.check import check
from stn.experiments.training.engine import Diverged, Replicas, Training
from stn.experiments.training.health import Health
from stn.experiments.training.logs import Log, finish, make_logger
from stn.experiments.training.progress import Progress
from stn.experiments.training.schedule import Schedule
from stn.experiments.training.unfinished import Unfinished

log = logging.getLogger(__name__)
PRIVATE = (
    "runs_dir",
    "data.root",
    "objective.root",
)  # overrides that are paths of this machine: in no record, not sent
PROBE = 8  # test images whose warp is drawn


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
    """Check a resolved config and name its run.  Raises ValueError, in one line, where it cannot be run."""
    check(config)
    schedule_of(config)
    groups = identity.asked(config)
    revisions = build.revisions(groups)
    also: dict[str, Any] = {} if config["precision"] == "auto" else {"precision": config["precision"]}
    if config["smoke"]:
        also["smoke"] = True
    name = (config["experiment_name"], config["schedule_name"], config["seed"], groups)
    digits = identity.of(*name, revisions, **also)
    words = [word for word in overrides if word.lstrip("+").split("=")[0] not in PRIVATE]
    return Job(config, words, groups, revisions, identity.run_name(*name, digits))


def run(config: dict[str, Any], overrides: list[str], wait_s: int | float = 0) -> records.Record:
    """Train, test and record what a resolved config says, or go on with it, or return its record if it is finished.

    Waits `wait_s` seconds for another process that is at this run.
    Raises ValueError on a config that cannot be run, Diverged (after recording it) where the loss is no number.
    """
    job = plan(config, overrides)
    if environment.rank() > 0:  # a process that the first one started: it trains its share, and that is all
        train(job)
        return {}
    with locked(job.folder, wait_s):
        return finished(job) or train(job)


@contextmanager
def locked(folder: Path, wait_s: int | float) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made where it is not there.  Raises ValueError where that fails."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise ValueError(
            f"another process is at this run already: {folder}; wait for it, or change a setting"
        ) from None
    except OSError as error:
        raise ValueError(
            f"cannot write the run folder {folder} ({error.strerror}): set runs_dir to one that you can"
        ) from None
    try:
        yield
    finally:
        lock.release()


def finished(job: Job) -> records.Record | None:
    """The record of a run that has ended; None where there is none yet.

    Raises ValueError where it is another run's, or of one that failed.
    """
    path = job.folder / "result.json"
    if not path.exists():
        return None
    record = records.read(path)
    if record["id"] != job.id or record["config"] != job.groups or record["revisions"] != job.revisions:
        raise ValueError(f"{path} is the record of another run, {record['id']}: move it away, or delete {job.folder}")
    log.info("%s: %s already, in %s", job.id, summary(record), job.folder)
    if record["status"] == "failed":
        raise ValueError(f"{job.id} failed before: {record['failure']}; delete {job.folder} to try again")
    return record


def summary(record: records.Record) -> str:
    """finished, test/error 1.23 % / failed: why."""
    if record["status"] == "failed":
        return f"failed: {record['failure']}"
    return "finished, " + ", ".join(f"{key} {value:.2f} %" for key, value in record["metrics"].items())


def schedule_of(config: dict[str, Any]) -> Schedule:
    """The schedule and the optimiser of a config."""
    return Schedule(**config["schedule"], optimizer=config["optimizer"])


def build_training(config: dict[str, Any]) -> Training:
    """What a resolved config trains, before its first step, with weights drawn from its seed."""
    pl.seed_everything(config["seed"], verbose=False)
    data = build.data_set(config["data"], config["data"]["root"])
    network = build.network(config["model"], data.in_shape, data.classes)
    precision = environment.pick_precision(config["precision"], network, environment.pick_device(config["device"]))
    objective = build.objective(
        config["objective"], precision=precision, runs=config["runs_dir"], data_root=config["data"]["root"]
    )
    how = config["accumulate"], config["capture"]
    return Training(network, data, objective, schedule_of(config), config["seed"], precision, *how)


def train(job: Job) -> records.Record:
    """Train from the last checkpoint, or from the start, then test and record."""
    if job.config["threads"] is not None:
        torch.set_num_threads(job.config["threads"])
    device = environment.pick_device(job.config["device"])
    environment.set_deterministic(job.config["deterministic"])
    module = build_training(job.config)
    record = describe(job, module, device)
    module.where = {key: record[key] for key in ("commit", "dirty", "device", "threads")}
    first = environment.rank() == 0
    logger = None
    if first:
        sent = shareable(job.config)
        (job.folder / "config.json").write_text(json.dumps(sent, indent=1))
        log.info(
            "%s: %d parameters, %d steps of %d images; everything goes to %s",
            job.id, record["params"], record["steps"], module.schedule.batch_size, job.folder,
        )  # fmt: skip
        if job.config["logger"] is not None:
            sent |= {key: record[key] for key in ("commit", "dirty", "params", "steps")}
            group = (job.config.get("table") or {}).get("name", job.config["experiment_name"])
            logger = make_logger(job.config["logger"], job.folder, sent, group)
    try:
        fit(job, module, device, record, logger)
        if first:
            record |= {"status": "finished", "metrics": test(job, module, device)}
    except Diverged as error:
        record |= {"status": "failed", "failure": str(error), "failed_step": error.step}
        raise
    except RuntimeError as error:
        if not (job.config["deterministic"] and "deterministic" in str(error)):
            raise
        raise ValueError(
            f"deterministic=true cannot be kept here: {str(error).split('.')[0]}; leave it out, or choose device=cpu"
        ) from None
    finally:
        if first and record["status"] != "unfinished":
            keep(job, module, record)
        if logger is not None:
            finish(logger, record, job.folder)
    return record


def trainer(job: Job, device: torch.device, devices: int = 1, **more: Any) -> pl.Trainer:
    """Lightning's trainer without what this code does itself."""
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index] if device.type == "cuda" and devices == 1 else devices,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job.folder,
        **more,
    )


def fit(job: Job, module: Training, device: torch.device, record: records.Record, logger: Any) -> None:
    """All blocks from the last checkpoint on; the last one leaves a checkpoint, too."""
    config, first = job.config, environment.rank() == 0
    probe = next(iter(module.data.test_batches()))[0][:PROBE]
    saver = checkpoint.Checkpoint(job.folder / "checkpoint.ckpt", config["checkpoint_every_s"])
    callbacks: list[pl.Callback] = [Health(probe), Log(probe, config["pictures"]), saver]
    if first:
        callbacks.append(Unfinished(job.folder / "unfinished.json", record, config["checkpoint_every_s"]))
    if first and config["progress"]:
        callbacks.append(Progress(job.id))
    strategy: Any = "auto"
    if config["devices"] > 1:
        strategy = Replicas(process_group_backend=None if device.type == "cuda" else "gloo")
    resume = None
    if saver.path.exists():
        checkpoint.check(saver.path)
        resume = saver.path
        log.info("%s: goes on from %s", job.id, saver.path)
    one = trainer(
        job, device, config["devices"], strategy=strategy, max_epochs=module.schedule.blocks, logger=logger or False,
        callbacks=callbacks, log_every_n_steps=1,
    )  # fmt: skip
    one.fit(module, ckpt_path=resume, weights_only=True)
    saver.save(one)


def test(job: Job, module: Training, device: torch.device) -> dict[str, float]:
    """The metrics over the test set, on one device, so that no image counts twice."""
    tester = trainer(job, device, logger=False)
    tester.test(module, verbose=False)
    return {key: round(value.item(), 4) for key, value in tester.callback_metrics.items()}


def describe(job: Job, module: Training, device: torch.device) -> records.Record:
    """The record of a run before its result."""
    schedule, config = module.schedule, job.config
    return {
        "version": records.VERSION,
        "id": job.id,
        "experiment": config["experiment_name"],
        "schedule": config["schedule_name"],
        "seed": config["seed"],
        "status": "unfinished",
        "metrics": {},
        "params": num_params(module.network),
        "steps": schedule.steps,
        "seconds": 0.0,
        "core_seconds": 0.0,
        "samples_per_s": None,
        "precision": module.precision,
        "budget": config["budget"],
        "smoke": config["smoke"],
        "synthetic": module.data.synthetic,
        "in_shape": list(module.data.in_shape),
        "classes": module.data.classes,
        "config": job.groups,
        "revisions": job.revisions,
        "overrides": job.overrides,
        **environment.describe(device),
        "data_sha256": module.data.checksums() | module.objective.checksums(),
    }


def keep(job: Job, module: Training, record: records.Record) -> None:
    """Write the weights of a finished run, then, as its last act, its record."""
    rounded = [{k: v if k == "step" else float(f"{v:.6g}") for k, v in entry.items()} for entry in module.curve]
    seen = record["steps"] * module.schedule.batch_size
    record |= {
        "seconds": round(module.clock.seconds, 2),
        "core_seconds": round(module.clock.core_seconds, 2),
        "samples_per_s": round(seen / module.clock.seconds) if module.clock.seconds else None,
        "sessions": module.sessions,
        "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "curve": rounded,
    }
    if record["status"] == "finished":
        state = {name: value.contiguous() for name, value in module.network.state_dict().items()}
        scratch = job.folder / "weights.tmp"
        save_file(state, scratch, metadata={"id": job.id})
        scratch.replace(job.folder / "weights.safetensors")
    records.write(job.folder / "result.json", record)
    (job.folder / "unfinished.json").unlink(missing_ok=True)
    log.info("%s: %s, in %s", job.id, summary(record), job.folder)


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without the paths of this machine and the settings of the logger."""
    sent = {key: value for key, value in config.items() if key not in ("runs_dir", "logger")}
    return sent | identity.asked(config)
