"""Checks a config before anything is created or computed.

Every value has to have the right type and range, the named objects have to accept it, and the run has to fit into
memory.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch

from stn.experiments import build
from stn.experiments.command import ROOT
from stn.experiments.datasets.voxel import free_bytes
from stn.experiments.errors import first_line
from stn.experiments.rules import FLAG, MAPPING, TEXT, Rule, number, one_of, or_null, require, whole
from stn.experiments.training.environment import pick_device
from stn.experiments.training.schedule import RULES, Schedule, named_class

WANDB = "pytorch_lightning.loggers.WandbLogger"
SIDE_PX = 1024  # largest side of an image
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # it names a folder
COPIES = 3  # at least, of every weight: itself, its gradient, the optimiser's momentum
BYTES_PER_PIXEL = 12  # at least, of a training batch: the value and its sampling point, in float32


FOLDER = Rule(lambda v: isinstance(v, str) and v != "" and "\0" not in v, "a folder's path")
NAMES = Rule(
    lambda v: isinstance(v, str) and NAME.fullmatch(v) is not None,
    "a name of up to 100 letters, digits, '_', '.' and '-', since it names a folder",
)
PROJECT = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"[^/\\#?%:]{1,128}", v) is not None,
    "a text of up to 128 characters without / \\ # ? % :",
)
ROW = Rule(
    lambda v: MAPPING.fits(v) and NAMES.fits(v.get("table")) and (ROOT / f"conf/table/{v['table']}.yaml").is_file(),
    "a mapping in which `table` is the name of a file of conf/table",
)

OWN = {  # every key of conf/config.yaml outside the groups
    "experiment_name": NAMES,
    "schedule_name": NAMES,
    "seed": whole(0, 2**32 - 1),  # NumPy's range
    "budget": or_null(whole(1, 10**12)),
    "width": number(1e-3, 100),
    "dropout": number(0, 0.999),
    "row": or_null(ROW),
    "runs_dir": FOLDER,
    "precision": one_of("auto", "fp32", "bf16"),
    "device": one_of("auto", "cpu", "cuda"),
    "devices": whole(1, 1024),
    "accumulate": whole(1, 10**6),
    "threads": or_null(whole(1, 1024)),
    "checkpoint_every_s": whole(0, 10**9),
    "deterministic": FLAG,
    "capture": FLAG,
    "compile": FLAG,
    "pictures": whole(0, 10**6),
    "validations": whole(0, 10**6),
    "progress": FLAG,
    "smoke": FLAG,
    "logger": or_null(MAPPING),
}
GROUPS = {  # keys of the groups; names, and values that depend on them, are checked where objects are built
    "data.root": FOLDER,
    "data.parts": FLAG,
    "model.budget": or_null(whole(1, 10**12)),
    "model.width": or_null(number(1e-3, 10**6)),
    "model.dropout": number(0, 0.999),
    "model.pooled": FLAG,
    "model.projected": FLAG,
    "model.out_px": or_null(whole(1, SIDE_PX)),
    "model.sample_px": whole(1, SIDE_PX),
    "model.pool": whole(1, 64),
    "model.times": whole(1, 100),
    "model.places": whole(1, 100),
    "model.stride": whole(1, 64),
    "model.start": number(0, 1),
    "model.scale_rate": number(0, 1000),
    "model.backbone": TEXT,
    "model.weights": TEXT,
    "model.frozen": or_null(TEXT),
    "model.last": or_null(TEXT),
    "model.localisation_norm": FLAG,
    "objective.encoder": TEXT,
    "objective.margin": number(0, 1e6),
    "objective.attraction": number(0, 1e6),
    "objective.one_sided": FLAG,
    "objective.scaled_layers": FLAG,
} | {f"schedule.{key}": rule for key, rule in RULES.items()}


def check(config: Mapping[str, Any]) -> None:
    """Raise ValueError on a config that cannot run."""
    _check_values(config)
    known = [field.name for field in fields(Schedule) if field.name != "optimizer"]
    for key in config["schedule"]:
        if key not in known:
            raise ValueError(f"unknown key schedule.{key}: valid here: {', '.join(known)}")
    schedule = Schedule(**config["schedule"], optimizer=config["optimizer"])
    shares = config["devices"] * config["accumulate"]
    if schedule.batch_size % shares:
        raise ValueError(
            f"schedule.batch_size={schedule.batch_size} has to be a multiple of devices x accumulate = {shares}"
        )
    for name, settings in (config["logger"] or {}).items():
        _check_logger(f"logger.{name}", settings)
    in_shape, classes = build.shape(config["data"])
    params = _params(config["model"], in_shape, classes)
    build.check_objective(config["objective"], config["data"], config["model"]["name"])
    _check_memory(config, schedule.batch_size, in_shape, params)


def _check_values(config: Mapping[str, Any]) -> None:
    for group in ("data", "model", "objective", "optimizer", "schedule"):
        if not isinstance(config.get(group), Mapping):
            raise ValueError(
                f"{group}={config.get(group)!r} has to be a mapping: choose a file of conf/{group} with {group}=NAME"
            )
    distortion = config["data"].get("distortion")
    if "distortion" in config["data"] and not isinstance(distortion, Mapping):
        raise ValueError(
            f"data.distortion={distortion} has to be a mapping: choose a file of conf/data/distortion with "
            f"data/distortion={distortion}"
        )
    missing = [key for key in OWN if key not in config]
    missing += [f"schedule.{f.name}" for f in fields(Schedule) if f.name not in {"optimizer", *config["schedule"]}]
    missing += [] if "root" in config["data"] else ["data.root"]
    if missing:
        raise ValueError(f"{missing[0]} is missing, but every run needs it: leave out ~{missing[0]}")
    values = {key: config[key] for key in OWN}
    for group in ("data", "model", "objective", "schedule"):
        values |= {f"{group}.{key}": value for key, value in config[group].items()}
    for key, value in values.items():
        rule = OWN.get(key) or GROUPS.get(key)
        if rule is not None:
            require(rule, key, value)


def _check_logger(name: str, settings: Any) -> None:
    if isinstance(settings, Mapping) and settings.get("_target_") == WANDB:
        for key, rule in {"project": PROJECT, "settings": MAPPING}.items():
            require(rule, f"{name}.{key}", settings.get(key), ", or logger=none")
    else:
        from pytorch_lightning.loggers import Logger  # takes seconds to load

        named_class(settings, name, Logger)
        if name == "logger.tensorboard" and not find_spec("tensorboard"):
            raise ValueError(f"{name} is not installed: pip install '.[tensorboard]'")


def _params(model: Mapping[str, Any], in_shape: tuple[int, ...], classes: int) -> int:
    """The number of weights of a config's network, built without memory.  Raises ValueError if it cannot be built."""
    if "weights" in model:  # only read when the run starts
        model = {**model, "weights": "random"}
    try:
        with torch.device("meta"):
            network = build.network(model, in_shape, classes)
    except ValueError:
        raise
    except NotImplementedError:  # a layer that cannot be built without memory
        return 0
    except (TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ValueError(
            f"model.name={model['name']} cannot be built for inputs of {list(in_shape)}: {first_line(error)}"
        ) from None
    return sum(p.numel() for p in network.parameters())


def _check_memory(config: Mapping[str, Any], batch_size: int, in_shape: tuple[int, ...], params: int) -> None:
    """Raise ValueError if the weights or a batch alone exceed the free memory; training needs more than either."""
    device = pick_device(config["device"])
    pixels = batch_size * torch.Size(in_shape).numel()
    needs = {
        f"{params:,} weights: lower budget={config['budget']} or the model's size": 4 * COPIES * params,
        f"a batch: lower schedule.batch_size={batch_size}": BYTES_PER_PIXEL * pixels,
    }
    free = free_bytes(device)
    for what, need in needs.items():
        if free is not None and need > free:
            raise ValueError(
                f"{device.type} has {free / 1e9:,.0f} GB free, too little for the {need / 1e9:,.0f} GB of {what}"
            )
