"""One run from its config to its record: the only place where Hydra instantiates."""

import json
import logging
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from stn.networks.mnist import num_params
from stn.results import records
from stn.training import checkpoint
from stn.training.classification import Classification
from stn.training.engine import Diverged, Replicas, Training
from stn.training.health import Health
from stn.training.logs import Log, finish, wandb_logger
from stn.training.progress import Progress, Unfinished

log = logging.getLogger(__name__)
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "wandb", "numpy")
PRIVATE = ("runs_dir", "data.root")  # overrides that are paths of this machine: in no record, not sent anywhere
PROBE = 8  # test images whose warp is drawn
NAMED = ("distortion", "digit", "size_px", "dataset")  # what a run's name says of its data


def run(cfg: DictConfig, overrides: list[str], wait_s: float = 0) -> records.Record:
    """Train, test and record what `cfg` says, or go on with it, or return its record if it is finished.

    Waits `wait_s` seconds for another process that is at this run.

    Raises ValueError on a config that cannot be run, Diverged (after recording it) where the loss is no number.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    counts = {
        "seed": 0,
        "budget": 1,
        "threads": 1,
        "pictures": 0,
        "checkpoint_every_s": 0,
        "devices": 1,
        "accumulate": 1,
    }
    for key, least in counts.items():
        value = least if key in ("threads", "budget") and config[key] is None else config[key]
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{key}={value} has to be a whole number, {least} or more")
    for key, where in {"runs_dir": config["runs_dir"], "data.root": config["data"]["root"]}.items():
        if not isinstance(where, str):
            raise ValueError(f"{key}={where} has to be a folder's path")
    if config["seed"] >= 2**32:
        raise ValueError(f"seed={config['seed']} has to be below 2^32, which is what NumPy takes")
    shares = config["devices"] * config["accumulate"]
    if config["schedule"]["batch_size"] % shares:
        raise ValueError(
            f"schedule.batch_size={config['schedule']['batch_size']} has to be a multiple of "
            f"devices x accumulate = {shares}"
        )
    identity = records.identity_config(config)
    name = run_name(identity)
    folder = Path(cfg.runs_dir) / name
    if rank() > 0:  # a process that the first one started: it trains its share, and that is all
        return _train(cfg, config, identity, overrides, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise ValueError(
            f"another process is at this run already: {folder}; wait for it, or change a setting"
        ) from None
    except OSError as error:
        raise ValueError(
            f"cannot write the run folder {folder} ({error.strerror}): set runs_dir to one that you can"
        ) from None
    with lock:
        result = folder / "result.json"
        if result.exists():
            record = records.read(result)
            log.info("%s: %s already, in %s", name, summary(record), folder)
            if record["status"] == "failed":
                raise ValueError(f"{name} failed before: {record['failure']}; delete {folder} to try again")
            return record
        return _train(cfg, config, identity, overrides, folder)


def rank() -> int:
    """Which of the processes of devices > 1 this is; Lightning starts the others with the same command line."""
    return int(os.environ.get("LOCAL_RANK", 0))


def rebuild(record: records.Record, weights: Path, root: str | Path) -> tuple[torch.nn.Module, Any]:
    """The trained network of a record, in eval mode, and its data set, from the run's weights.pt."""
    data = instantiate(record["config"]["data"], root=root)
    network = build_network(record["config"]["model"], data)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval(), data


def build_network(model: Any, data: Any) -> torch.nn.Module:
    """The network of a config's `model` for the images and classes of a data set."""
    return instantiate(model, _partial_=True, _convert_="all")(in_shape=data.in_shape, classes=data.classes)


def build_training(cfg: DictConfig) -> Training:
    """What a config trains, before its first step, with weights drawn from its seed."""
    pl.seed_everything(cfg.seed, verbose=False)
    schedule = instantiate(cfg.schedule)
    data = instantiate(cfg.data)
    network = build_network(cfg.model, data)
    objective = instantiate(cfg.objective) if "objective" in cfg else Classification()
    return Training(network, data, objective, schedule, cfg.seed, cfg.precision, cfg.accumulate)


def run_name(identity: dict[str, Any]) -> str:
    """A name for people and the identity's digits for machines; the run's folder and its W&B run are called so."""
    parts = [identity["experiment_name"], *(str(identity["data"][key]) for key in NAMED if key in identity["data"])]
    return "-".join([*parts, identity["schedule_name"], f"seed{identity['seed']}", records.identity(identity)])


def summary(record: records.Record) -> str:
    """finished, test/error 1.23 % / failed: why."""
    if record["status"] == "failed":
        return f"failed: {record['failure']}"
    return "finished, " + ", ".join(f"{key} {value:.2f} %" for key, value in record["metrics"].items())


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without the paths of this machine and the settings of the logger."""
    return records.without_paths({key: value for key, value in config.items() if key not in ("runs_dir", "logger")})


def _train(
    cfg: DictConfig, config: dict[str, Any], identity: dict[str, Any], overrides: list[str], folder: Path
) -> records.Record:
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = pick_device(cfg.device)
    module = build_training(cfg)
    network, data, objective, schedule = module.network, module.data, module.objective, module.schedule
    first = rank() == 0
    if first:
        (folder / "config.json").write_text(json.dumps(shareable(config), indent=1))
        log.info(
            "%s: %d parameters, %d steps of %d images; everything goes to %s",
            folder.name, num_params(network), schedule.steps, schedule.batch_size, folder,
        )  # fmt: skip

    unfinished = folder / "unfinished.json"
    probe = next(iter(data.test_batches()))[0][:PROBE]
    saver = checkpoint.Checkpoint(folder / "checkpoint.ckpt", cfg.checkpoint_every_s)
    record: records.Record = {
        "version": records.VERSION,
        "experiment": cfg.experiment_name,
        "schedule": cfg.schedule_name,
        "seed": cfg.seed,
        "budget": cfg.budget,
        "overrides": [word for word in overrides if word.lstrip("+").split("=")[0] not in PRIVATE],
        "config": identity,
        "made_data": data.made,
        "params": num_params(network),
        "steps": schedule.steps,
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        **git_state(),
        "data_sha256": data.checksums() | getattr(objective, "checksums", dict)(),
    }
    logger = None
    if cfg.logger is not None and first:
        sent = shareable(config) | {key: record[key] for key in ("commit", "dirty", "params", "steps")}
        group = cfg.table.name if cfg.get("table") else cfg.experiment_name
        logger = wandb_logger(instantiate(cfg.logger, _partial_=True), folder, sent, group)
    trainer = pl.Trainer(
        max_epochs=schedule.blocks,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=cfg.devices,
        strategy=Replicas(process_group_backend=None if device.type == "cuda" else "gloo")
        if cfg.devices > 1
        else "auto",
        logger=logger or False,
        callbacks=[
            Health(probe),
            Log(probe, cfg.pictures),
            saver,
            *([Unfinished(unfinished, record, cfg.checkpoint_every_s)] if first else []),
            *([Progress(folder.name)] if cfg.progress and first else []),
        ],
        enable_checkpointing=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    resume = None
    if saver.path.exists():
        checkpoint.check(saver.path)
        resume = saver.path
        log.info("%s: goes on from %s", folder.name, saver.path)

    try:
        trainer.fit(module, ckpt_path=resume, weights_only=True)
        saver.save(trainer)
        if not first:
            return {}
        # on one device, so that no image counts twice
        tester = (
            trainer
            if cfg.devices == 1
            else pl.Trainer(
                accelerator="cpu" if device.type == "cpu" else "gpu",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
        )
        tester.test(module, verbose=False)
        test = {key: round(value.item(), 4) for key, value in tester.callback_metrics.items()}
        record |= {"status": "finished", "metrics": test}
    except Diverged as error:
        record |= {"status": "failed", "failure": str(error), "failed_step": error.step, "metrics": {}}
        raise
    finally:
        if first and "status" in record:
            record |= {
                "curve": [
                    {k: v if k == "step" else float(f"{v:.6g}") for k, v in entry.items()} for entry in module.curve
                ],
                "seconds": round(module.seconds, 2),
                "samples_per_s": round(schedule.steps * schedule.batch_size / module.seconds)
                if module.seconds
                else None,
                "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            if record["status"] == "finished":
                torch.save(network.state_dict(), folder / "weights.pt")
            records.write(folder / "result.json", record)
            unfinished.unlink(missing_ok=True)
            log.info("%s: %s, in %s", folder.name, summary(record), folder)
        if logger is not None:
            finish(logger, record, folder)
    return record


def pick_device(name: str) -> torch.device:
    """auto (CUDA where there is one), cpu or cuda."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device={name!r}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch sees no CUDA device here: choose cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """The commit that this code is at and whether it was changed since; None where it is no checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
