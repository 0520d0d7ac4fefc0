"""The identity of a run: a digest of its settings, and the name that people read.

The digest covers names and values alone: experiment, data, model, objective, optimiser, schedule and seed, and the
revisions of the code that computes them.  It covers no import path, so code may move.  It covers no path, device,
number of threads or precision that the machine chose, so a run is the same run everywhere.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_ABSENT = object()
GROUPS = ("data", "model", "objective", "optimizer", "schedule")
PATHS = ("root",)  # keys of a group that are paths of this machine
PRIVATE = ("runs_dir", "data.root")  # overrides with such paths: in no record, and not sent

# Keys that were added after the first records, each with the value that computes the same as before it existed.
# A key with that value is not part of the identity, so adding a key does not change the names of existing runs.
LATER: dict[str, Any] = {
    "data.test_split": "test",
    "data.parts": False,
    "data.upright_px": None,
    "data.distortion.control": "corners",
    "data.distortion.overlap": "maximum",
    "data.distortion.blank": True,
    "model.width": None,
    "model.projected": True,
    "model.params_of": None,
    "model.windows": "learnt",
    "model.first": "tiles",
    "model.localisation_norm": False,
    "objective.one_sided": True,
    "objective.scaled_layers": True,
    "schedule.ema": None,
}


def asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of a resolved config, without paths."""
    return {group: {k: v for k, v in config[group].items() if k not in PATHS} for group in GROUPS}


def public(words: list[str]) -> list[str]:
    """The overrides of a command line without paths of this machine; the rest identifies a run anywhere."""
    return [word for word in words if word.lstrip("+").split("=")[0] not in PRIVATE]


def of(
    experiment: str,
    schedule: str,
    seed: int,
    groups: Mapping[str, Any],
    revisions: Mapping[str, int],
    **also: Any,
) -> str:
    """Ten hexadecimal digits; `schedule` is the schedule's name, `also` further settings (precision, smoke).

    20 and 20.0 are the same value.
    """
    whole: dict[str, Any] = {"experiment": experiment, "schedule": schedule, "seed": seed, "revisions": revisions}
    whole["config"] = normal(groups)
    whole |= also
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:10]


def normal(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of a config such that those which compute the same are equal."""
    return {group: _normal(group, groups.get(group)) for group in GROUPS}


def _normal(path: str, value: Any) -> Any:
    """A value without later keys that have their old values; floats with whole values become integers."""
    if isinstance(value, Mapping):
        places = {key: f"{path}.{key}" for key in value}
        kept = {key: inner for key, inner in value.items() if inner != LATER.get(places[key], _ABSENT)}
        return {key: _normal(places[key], inner) for key, inner in kept.items()}
    if isinstance(value, list | tuple):
        return [_normal(path, inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configs have the same groups, even if one lacks keys that were added later."""
    return normal(one) == normal(other)


def run_name(experiment: str, schedule: str, seed: int, groups: Mapping[str, Any], digits: str) -> str:
    """<experiment>-<data>-<schedule>-seed<k>-<identity>: the name of the run's folder and of its W&B run."""
    data = groups["data"]
    if "distortion" in data:
        what = data["distortion"]["name"]
    elif "digit" in data:
        what = str(data["digit"])
    else:
        what = "-".join(str(data[key]) for key in ("name", "size_px") if key in data)
    return f"{experiment}-{what}-{schedule}-seed{seed}-{digits}"
