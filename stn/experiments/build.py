"""Build objects from the names in a config: only names in the project's own tables are ever built.

A record may come from anybody, and Hydra's `instantiate` calls whatever a `_target_` names.  Here a config is data.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from stn.experiments.datasets import DATA_SETS
from stn.experiments.networks import CLASSIFIERS, LOCALISATIONS, NETWORKS, TRANSFORMS
from stn.experiments.training import OBJECTIVES, step

PARTS: dict[str, Mapping[str, Any]] = {
    "classifier": CLASSIFIERS,
    "localisation": LOCALISATIONS,
    "transform": TRANSFORMS,
}
KINDS = {"data": ("datasets", DATA_SETS), "model": ("networks", NETWORKS), "objective": ("training", OBJECTIVES)}


def _find(group: str, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The module and the class or function of `config["name"]`."""
    package, known = KINDS[group]
    name = config.get("name")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown {group}.name={name!r}: choose one of {', '.join(known)}")
    module_name, attribute = known[name].split(":")
    module = import_module(f"stn.experiments.{package}.{module_name}")
    return module, getattr(module, attribute)


def _settings(group: str, config: Mapping[str, Any], build: Callable[..., Any], given: set[str]) -> dict[str, Any]:
    """The config without its name.  Raises ValueError unless its keys are the parameters of `build` except `given`."""
    settings = {key: value for key, value in config.items() if key != "name"}
    parameters = {key: p for key, p in inspect.signature(build).parameters.items() if key not in given}
    if unknown := sorted(set(settings) - set(parameters)):
        raise ValueError(
            f"unknown key {group}.{unknown[0]} of {group}.name={config['name']}: it takes {', '.join(parameters)}"
        )
    missing = sorted(key for key, p in parameters.items() if p.default is p.empty and key not in settings)
    if missing:
        raise ValueError(
            f"{group}.{missing[0]} is missing: {group}.name={config['name']} takes {', '.join(parameters)}"
        )
    return settings


def _part(key: str, name: Any, known: Mapping[str, Any]) -> Any:
    optional = key != "classifier"  # without a transformer the others are null
    if not (name is None and optional) and not (isinstance(name, str) and name in known):
        raise ValueError(f"unknown model.{key}={name!r}: choose one of {', '.join(known)}")
    return None if name is None else known[name]


def data_set(config: Mapping[str, Any], root: str | Path) -> Any:
    """The data set of a config's `data`, with its files in `root`."""
    _, build = _find("data", config)
    named = {key: value for key, value in config.items() if key != "root"}
    return build(root=root, **_settings("data", named, build, {"root"}))


def network(config: Mapping[str, Any], in_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network of a config's `model` for images of `in_shape` and this number of classes."""
    _, build = _find("model", config)
    settings = _settings("model", config, build, {"in_shape", "classes"})
    for key, known in PARTS.items():
        if key in settings:
            settings[key] = _part(key, settings[key], known)
    if settings.get("transform") is not None:
        settings["transform"] = settings["transform"]()
    return build(in_shape=tuple(in_shape), classes=classes, **settings)


def shape(config: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    """`in_shape` and the number of classes of a config's `data`.  Checks the values, does not read the files.

    For photographs the number of classes is 1, since only the files tell it.
    """
    _, kind = _find("data", config)
    settings = _settings("data", {k: v for k, v in config.items() if k != "root"}, kind, {"root"})
    return kind.shape(**settings), kind.classes


def ensure(config: Mapping[str, Any], root: str | Path) -> None:
    """Fetch, check or draw the files of a config's `data` in `root`, if they are missing.

    Raises OSError or ValueError if that fails.
    """
    _, kind = _find("data", config)
    kind.ensure(root, **_settings("data", {k: v for k, v in config.items() if k != "root"}, kind, {"root"}))


def check_objective(config: Mapping[str, Any], data: Mapping[str, Any], model: str) -> None:
    """Raise ValueError unless a config's `objective` has the keys of the one it names and fits its data and model."""
    _, kind = _find("objective", config)
    _settings("objective", config, kind, {"precision", "runs", "data_root"})
    name, fitting = config["name"], getattr(kind, "data", ())  # an objective need not name any
    clash = f"objective={name} cannot be used with data.name={data['name']}"
    if fitting and data["name"] not in fitting:
        raise ValueError(f"{clash}, only with {', '.join(fitting)}")
    if not fitting and not _find("data", data)[1].labelled:
        raise ValueError(f"{clash}, which has an objective of its own")
    if (name == "colocalisation") != (model == "colocalisation"):  # one returns crops, which the other compares
        raise ValueError(f"objective={name} cannot be used with model.name={model}: choose colocalisation for both")


def objective(config: Mapping[str, Any], **where: Any) -> Any:
    """The objective of a config's `objective`; `where` holds the folders and the precision that some need."""
    _, build = _find("objective", config)
    needed = {key: value for key, value in where.items() if key in inspect.signature(build).parameters}
    return build(**_settings("objective", config, build, set(needed)), **needed)


def revisions(groups: Mapping[str, Any]) -> dict[str, int]:
    """The revisions of the code that computes these groups: part of the identity."""
    return {group: _revision(_find(group, groups[group])[0]) for group in KINDS} | {"step": step.REVISION}


def _revision(module: Any) -> int:
    if not hasattr(module, "REVISION"):
        raise ValueError(f"{module.__file__} has no revision: add `REVISION = 1`, which is part of a run's identity")
    return module.REVISION
