"""What is wrong with a config, in one line, before anything is made or computed."""

from collections.abc import Mapping
from typing import Any

LEAST = {"seed": 0, "budget": 1, "threads": 1, "pictures": 0, "checkpoint_every_s": 0, "devices": 1, "accumulate": 1}
MAY_BE_NULL = ("budget", "threads")


def check(config: Mapping[str, Any]) -> None:
    """Raise ValueError on a key of conf/config.yaml's own whose value cannot be run.

    The groups are checked by what is built from them.
    """
    for key, least in LEAST.items():
        value = config[key]
        if value is None and key in MAY_BE_NULL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{key}={value!r} has to be a whole number, {least} or more")
    if config["seed"] >= 2**32:
        raise ValueError(f"seed={config['seed']} has to be below 2^32, which is what NumPy takes")
    for key in ("progress", "smoke", "capture", "deterministic"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{key}={config[key]!r} has to be true or false")
    for key, where in {"runs_dir": config["runs_dir"], "data.root": config["data"].get("root")}.items():
        if not isinstance(where, str):
            raise ValueError(f"{key}={where!r} has to be a folder's path")
    distortion = config["data"].get("distortion")
    if isinstance(distortion, str):
        raise ValueError(
            f"data.distortion={distortion}: it is a file of conf/data/distortion: data/distortion={distortion}"
        )
    batch_size, shares = config["schedule"]["batch_size"], config["devices"] * config["accumulate"]
    if isinstance(batch_size, int) and batch_size % shares:
        raise ValueError(f"schedule.batch_size={batch_size} has to be a multiple of devices x accumulate = {shares}")
