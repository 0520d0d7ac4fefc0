"""How a network is trained: steps, batch, and the learning rate over the steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class StepDecay:
    """lr x `factor` every `every` steps (A.4: 0.1 every 50k)."""

    every: int
    factor: float

    def __call__(self, step: int, steps: int) -> float:
        return self.factor ** (step // self.every)


@dataclass(frozen=True)
class Milestones:
    """lr x `factor` at each of the steps `at` (A.6: 0.1 at 10k, 20k and 25k)."""

    at: Sequence[int]
    factor: float

    def __call__(self, step: int, steps: int) -> float:
        return self.factor ** sum(step >= milestone for milestone in self.at)


@dataclass(frozen=True)
class OneCycle:
    """Half a cosine from 4 % up to the peak over the first `warmup` of the steps, and one down to 0 over the rest."""

    warmup: float

    def __post_init__(self) -> None:
        if not 0 < self.warmup < 1:
            raise ValueError(f"schedule.lr_factor.warmup={self.warmup} has to be between 0 and 1")

    def __call__(self, step: int, steps: int) -> float:
        done = step / steps
        if done < self.warmup:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * done / self.warmup)) / 2
        return (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))) / 2


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum; the unit of `steps` is one batch.  Raises ValueError on values that cannot be trained with.

    `clip_norm` bounds the norm of the whole gradient, or, beside a `localisation_clip_norm`, of what is left of it
    without the localisation networks.
    """

    steps: int
    batch_size: int
    lr: float
    lr_factor: Callable[[int, int], float]
    momentum: float
    weight_decay: float
    localisation_lr: float
    clip_norm: float | None
    block_steps: int
    localisation_clip_norm: float | None = None

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "block_steps"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise ValueError(f"schedule.{key}={getattr(self, key)} has to be a whole number, 1 or more")
        for key in ("clip_norm", "localisation_clip_norm"):
            norm = getattr(self, key)
            if norm is not None and not (isinstance(norm, int | float) and norm > 0):
                raise ValueError(f"schedule.{key}={norm} has to be a number above 0, or null for no clipping")
        for key in ("lr", "momentum", "weight_decay", "localisation_lr"):
            if not isinstance(getattr(self, key), int | float) or not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"schedule.{key}={getattr(self, key)} has to be a number, 0 or more")

    @property
    def blocks(self) -> int:
        """How many blocks the steps make; the last may be shorter."""
        return math.ceil(self.steps / self.block_steps)

    def optimizer(self, network: nn.Module) -> torch.optim.SGD:
        """SGD over two groups: the localisation networks at localisation_lr x lr, the rest at lr."""
        localisation, rest = parameters(network)
        groups = [{"params": rest, "lr": self.lr}]
        if localisation:
            groups.append({"params": localisation, "lr": self.lr * self.localisation_lr})
        return torch.optim.SGD(groups, momentum=self.momentum, weight_decay=self.weight_decay, fused=True)

    def clipped(self, network: nn.Module) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters whose gradients are held together, and the largest norm that they may have."""
        if self.localisation_clip_norm is None:
            bounds = [(list(network.parameters()), self.clip_norm)]
        else:
            bounds = list(zip(parameters(network), (self.localisation_clip_norm, self.clip_norm), strict=True))
        return [(group, norm) for group, norm in bounds if norm is not None]

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Sets every group's rate before each step."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_factor(step, self.steps))


def parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those of the localisation networks, and the rest."""
    named = list(network.named_parameters())
    return (
        [p for name, p in named if "localisation" in name.split(".")],
        [p for name, p in named if "localisation" not in name.split(".")],
    )
