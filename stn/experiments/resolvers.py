"""This project's own `${...:}` resolvers in conf/."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf


def gpus_of_a_job() -> int:
    """GPUs that a job of a sweep reserves: 1 if this machine has any, else 0."""
    import torch

    return int(torch.cuda.is_available())


def by(key: str, values: Mapping[str, Any]) -> Any:
    """The value at `key`, or at "else": lets one line of a schedule hold a value per classifier."""
    return values[key] if key in values else values["else"]


def register() -> None:
    """Register the resolvers; a launcher's worker process, which has not run run.py's first lines, calls this again."""
    OmegaConf.register_new_resolver("gpus_of_a_job", gpus_of_a_job, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("by", by, replace=True)
