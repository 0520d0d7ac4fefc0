"""A run from its job to its record: train, test, record."""

import hashlib
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment

from stn.experiments import build, command, identity
from stn.experiments.networks.sizing import num_params
from stn.experiments.results import records
from stn.experiments.training import checkpoint, environment
from stn.experiments.training.answers import Answers, labels_of
from stn.experiments.training.engine import Diverged, Replicas, Training
from stn.experiments.training.health import Health
from stn.experiments.training.job import Job, redundant, schedule_of, summary
from stn.experiments.training.logs import Log, finish, make_loggers
from stn.experiments.training.processes import Others
from stn.experiments.training.progress import Progress
from stn.experiments.training.validation import Validation, weights

log = logging.getLogger(__name__)
PROBE = 8  # test images whose warps are drawn
LOADED = time.time()  # the first run of a process waits for PyTorch and Lightning, the next ones do not


def build_training(config: dict[str, Any]) -> Training:
    """The Training of a resolved config before its first step, with weights drawn from its seed."""
    pl.seed_everything(config["seed"], verbose=False)
    data = build.data_set(config["data"], config["data"]["root"])
    network = build.network(config["model"], data.in_shape, data.classes)
    precision = environment.pick_precision(config["precision"], network, environment.pick_device(config["device"]))
    objective = build.objective(
        config["objective"], precision=precision, runs=config["runs_dir"], data_root=config["data"]["root"]
    )
    how = config["accumulate"], config["capture"], config["compile"]
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
    loggers: list[Logger] = []
    if first:
        sent = shareable(job.config)
        records.replace(job.folder / "config.json", json.dumps(sent, indent=1))
        log.info(
            "%s: %s parameters, %s steps of %d images, in %s",
            job.id, f"{record['params']:,}", f"{record['steps']:,}", module.schedule.batch_size, job.folder,
        )  # fmt: skip
        sent |= {key: record[key] for key in ("commit", "dirty", "params", "steps")}
        loggers = make_loggers(job.config["logger"] or {}, job.folder, sent, record)
    answers = Answers()
    bar = [Progress(job.id.rpartition("-")[0])] if first and job.config["progress"] else []
    try:
        fit(job, module, device, record, loggers, bar)
        if first:
            record |= {"status": "finished", "metrics": test(job, module, device, [answers, *bar])}
            record["test_images"] = module.test_images
    except Diverged as error:
        record |= {"status": "failed", "failure": str(error), "failed_step": error.step}
        if first:  # of several processes, one reports it
            raise
    except RuntimeError as error:
        # PyTorch has no class for this error: only its text identifies it
        if not (job.config["deterministic"] and "deterministic" in str(error)):
            raise
        raise ValueError(
            f"deterministic=true is not possible here: {str(error).split(',')[0]}; leave it out, or choose device=cpu"
        ) from None
    finally:
        if first and record["status"] != "unfinished":
            keep(job, module, record)
        finish(loggers, record, job.config["row"], answers, job.folder)
    return record


class Signals(pl.Callback):
    """Restores the handler of SIGTERM (command.py), since Lightning sets its own just before these hooks."""

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.on_train_start(trainer, module)


def trainer(
    job: Job, device: torch.device, callbacks: Sequence[pl.Callback], devices: int = 1, **more: Any
) -> pl.Trainer:
    """Lightning's trainer, without the features that this project replaces."""
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index] if device.type == "cuda" and devices == 1 else devices,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job.folder,
        callbacks=[Signals(), *callbacks],
        plugins=[checkpoint.InPlace(), LightningEnvironment()],  # not SLURM's: a run starts its own processes
        **more,
    )


def fit(
    job: Job, module: Training, device: torch.device, record: records.Record, loggers: list[Logger], bar: list[Progress]
) -> None:
    """Train all blocks from the last checkpoint on; the last block leaves a checkpoint, too."""
    config = job.config
    u, target = next(iter(module.data.test_batches()))
    probe, labels = u[:PROBE], labels_of(target)
    saver = checkpoint.Checkpoint(job.folder / "checkpoint.ckpt", config["checkpoint_every_s"], record)
    times = config["validations"] if config["data"].get("test_split") == "valid" else 0
    callbacks: list[pl.Callback] = [
        Health(probe),
        Validation(times, job.folder / "best.safetensors"),
        Log(probe, None if labels is None else labels[:PROBE], config["pictures"]),
        saver,
        *bar,
    ]
    strategy: Any = "auto"
    if config["devices"] > 1:
        strategy = Replicas(process_group_backend=None if device.type == "cuda" else "gloo")
        if environment.rank() == 0:
            os.environ.update(command.child())  # for the processes that Lightning starts
    resume = None
    if saver.path.exists():
        checkpoint.check(saver.path, record)
        resume = saver.path
        log.info("%s: resumes from %s", job.id, saver.path)
    others = [Others()] if config["devices"] > 1 else []
    one = trainer(
        job, device, [*callbacks, *others], config["devices"], strategy=strategy, max_epochs=module.schedule.blocks,
        logger=loggers, log_every_n_steps=1,
    )  # fmt: skip
    try:
        one.fit(module, ckpt_path=resume, weights_only=True)
        saver.save(one)
    except BaseException as error:
        if others and isinstance(error, RuntimeError):
            time.sleep(4 * command.WATCH_S)  # perhaps a lost connection: let the watcher end this process first
        for each in others:
            each.end()
        raise


def test(job: Job, module: Training, device: torch.device, callbacks: list[pl.Callback]) -> dict[str, float]:
    """The metrics over the test set, on one device, so that no image counts twice.

    Raises Diverged if one is NaN or infinite.
    """
    tester = trainer(job, device, callbacks, logger=False)
    tester.test(module, verbose=False)
    metrics = {key: round(value.item(), 4) for key, value in tester.callback_metrics.items()}
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(module.schedule.steps - 1, value, key)
    return metrics


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
        "redundant": redundant(job),
        **environment.describe(device),
        "data_sha256": module.data.checksums() | module.objective.checksums(),
    }


def keep(job: Job, module: Training, record: records.Record) -> None:
    """Write the weights of a finished run, then, as its last act, its record."""
    rounded = [{k: v if k == "step" else float(f"{v:.6g}") for k, v in entry.items()} for entry in module.curve]
    seen = (module.curve[-1]["step"] if module.curve else 0) * module.schedule.batch_size
    record |= {
        "seconds": round(module.clock.seconds, 2),
        "core_seconds": round(module.clock.core_seconds * job.config["devices"], 2),  # their processes share alike
        "samples_per_s": round(seen / module.clock.seconds) if module.clock.seconds else None,
        "sessions": module.sessions,
        "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "curve": rounded,
    }
    if record["status"] == "finished":
        content = weights(module.tested, job.id)
        records.replace(job.folder / "weights.safetensors", content)
        record["weights_sha256"] = hashlib.sha256(content).hexdigest()
    records.write(job.folder / "result.json", record)
    (job.folder / "unfinished.json").unlink(missing_ok=True)
    log.info("%s: %s, in %s", job.id, summary(record), job.folder)


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without paths of this machine and without the logger's settings."""
    sent = {key: value for key, value in config.items() if key not in ("runs_dir", "logger")}
    return sent | identity.asked(config)
