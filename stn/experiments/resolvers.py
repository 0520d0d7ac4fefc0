"""The `${...:}` of conf/ that are ours."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf


def gpus_of_a_job() -> int:
    """What a job of a sweep reserves for itself: one GPU where this machine has any."""
    import torch

    return int(torch.cuda.is_available())


def by(key: str, values: Mapping[str, Any]) -> Any:
    """The one of `values` that stands at `key`, or at "else": what differs by classifier, in one line of a schedule."""
    return values[key] if key in values else values["else"]


def register() -> None:
    """Make them known; a launcher's worker process, which never ran run.py's first lines, needs them again."""
    OmegaConf.register_new_resolver("gpus_of_a_job", gpus_of_a_job, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("by", by, replace=True)
