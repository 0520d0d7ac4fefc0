"""The environment of a run: device, precision, versions, commit."""

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stn.experiments.command import ROOT
from stn.experiments.results.records import on_gpu

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "wandb", "numpy")


def rank() -> int:
    """The number of this process with devices > 1; Lightning starts the others with the same command line."""
    return max(0, int(os.environ.get("LOCAL_RANK", 0)))  # some launchers of PyTorch set -1 for a process on its own


def pick_device(name: str) -> torch.device:
    """auto (CUDA if there is a device), cpu or cuda.  Raises ValueError on cuda without a CUDA device."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device={name!r}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch sees no CUDA device: choose cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def take_card(job: int) -> None:
    """Assign the machine's cards to the jobs of a sweep in turn; `job` is the number of this job.

    A launcher that assigns cards itself (Ray, SLURM) shows each job only its own, so this changes nothing there.
    """
    if count := torch.cuda.device_count():
        torch.cuda.set_device(job % count)


def of_this_kind(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of runs on a GPU if there is one here, else on a CPU: only these tell how long a step takes."""
    return [record for record in records if on_gpu(record) is torch.cuda.is_available()]


def set_deterministic(on: bool) -> None:
    """Make PyTorch use only deterministic algorithms, and raise RuntimeError when it has none."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it on first use
    torch.use_deterministic_algorithms(on)


@cache
def _cpuinfo(key: str) -> str:
    """The value of the first line of /proc/cpuinfo that begins with `key`; empty if there is none (not Linux)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 matrices faster than fp32: an Ampere GPU, a CPU with AMX, AMD's AVX-512 BF16.

    Intel's AVX-512 BF16 is not faster: on a Xeon without AMX the CNN's step on RTS took 1.7 times as long as in fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _cpuinfo("flags").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and _cpuinfo("vendor_id") == "AuthenticAMD")


def pick_precision(name: str, network: nn.Module, device: torch.device) -> str:
    """The precision `name`; auto is bf16 for a network with convolutions if the device is fast at it, else fp32."""
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"unknown precision={name!r}: choose auto, fp32 or bf16")
    if name != "auto":
        return name
    convolutions = any(isinstance(module, nn.Conv2d | nn.Conv3d) for module in network.modules())
    return "bf16" if convolutions and fast_bf16(device) else "fp32"


def describe(device: torch.device) -> dict[str, Any]:
    """`versions`, `device`, `threads`, `commit` and `dirty` of a record."""
    cpu = _cpuinfo("model name") or platform.processor() or platform.machine()
    return {
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        **git_state(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the installed PACKAGES, which need not include W&B."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found | {"python": platform.python_version()}


def git_state() -> dict[str, Any]:
    """The commit of this code and whether it was changed since; None outside a git checkout.

    A bundle (scripts/bundle.py) is not a checkout, but has both in the file .commit.
    """
    if (carried := ROOT / ".commit").is_file():
        commit, _, changed = carried.read_text().strip().partition(" ")
        return {"commit": commit, "dirty": bool(changed)}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
