"""The launchers by name, and what Ray and submitit need before Hydra starts them, to stop a sweep with its jobs."""

import os
import signal
import sys
from typing import Any

from omegaconf import OmegaConf

from stn.experiments import command
from stn.experiments.errors import first_line

EXTRA = {  # of every hydra/launcher=NAME: what `make setup EXTRAS=EXTRA` installs for it
    "basic": None, "joblib": "joblib", "ray": "ray", "ray_local": "ray", "ray_cluster": "ray",
    "submitit_local": "submitit", "submitit_slurm": "submitit", "slurm": "submitit",
}  # fmt: skip
BASES = ("ray", "submitit_slurm")  # Hydra's own, on which those of conf/hydra/launcher build
LOCAL = ("basic", "joblib", "ray_local", "submitit_local")  # their jobs share this machine's disk
SLURM = ("slurm", "submitit_slurm")  # their jobs outlive the sweep


def prepare(name: str, settings: Any) -> None:
    """Prepare the launcher of this name, with its settings in Hydra's config."""
    if name.startswith("ray"):
        start_ray(OmegaConf.to_container(settings.ray.init, resolve=True))
    elif name == "submitit_local":
        end_jobs_with_this_process()


def start_ray(init: Any) -> None:
    """Start Ray, or join a cluster.  Raises OSError if that fails."""
    import ray

    handlers = {number: signal.getsignal(number) for number in command.STOP}
    try:
        ray.init(**init)
    except Exception as error:  # Ray raises nothing more specific on a machine that is too busy
        raise OSError(f"Ray did not start: {first_line(error)}") from None
    for number, handler in handlers.items():  # Ray's own ones end the program without a word
        signal.signal(number, handler)


def end_jobs_with_this_process() -> None:
    """Let submitit's local jobs, which would survive this process, end with it, and by no signal of the terminal.

    Between this process and a job is one of submitit, which has no option for either.
    """
    from submitit.local import local

    start = local.start_controller

    def start_controller(*args: Any, **kwargs: Any) -> Any:
        with command.starting_workers():
            return start(*args, **kwargs)

    local.start_controller = start_controller
    if sys.platform == "linux" and not command.worker():
        os.environ.update(command.child())
