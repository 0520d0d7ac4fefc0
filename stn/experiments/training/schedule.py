"""How a network is trained: steps, batch size, optimiser, learning rate schedule, and bounds on the gradient."""

import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stn.experiments.rules import MAPPING, POSITIVE, Rule, below, is_finite, or_null, require, whole
from stn.experiments.training.step import Bound
from stn.transformer import SpatialTransformer

BOUNDS = ("all", "localisation", "rest")
MOST = 10**9  # steps, and images in a batch
RATES = ("lr", "weight_decay", "momentum")
LARGE = 1e16  # larger than any plausible learning rate


def _is_bound(value: Any) -> bool:
    named = isinstance(value, Mapping) and set(value) <= set(BOUNDS)
    return value is None or (named and not ("all" in value and len(value) > 1))


RULES = {  # of a config's `schedule`
    "steps": whole(1, MOST),
    "batch_size": whole(1, MOST),
    "block_steps": whole(1, MOST),
    "lr_scheduler": or_null(Rule(MAPPING.fits, "a mapping with _target_, an LRScheduler, and its keys")),
    "localisation_lr": below(LARGE),
    "ema": or_null(Rule(lambda v: is_finite(v) and 0 < v < 1, "a number above 0 and below 1")),
    "bound": Rule(_is_bound, "null, {all: norm} or {localisation: norm, rest: norm}"),
}


def parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters: those of the localisation networks of all spatial transformers, and the rest."""
    transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    localisation = {p for transformer in transformers for p in transformer.localisation.parameters()}
    trainable = [p for p in network.parameters() if p.requires_grad]
    return [p for p in trainable if p in localisation], [p for p in trainable if p not in localisation]


def takes_rate_from_device(optimizer: Optimizer) -> bool:
    """Whether its step reads the learning rate from a tensor on the device, as a captured step has to.

    Fused SGD, Adam and AdamW do; Muon and the unfused loops copy it to the host.
    """
    return bool(optimizer.defaults.get("fused"))


def sets_rates_alone(scheduler: LRScheduler) -> bool:
    """Whether it changes learning rates alone: OneCycleLR and CyclicLR change momentum unless cycle_momentum=False."""
    return not getattr(scheduler, "cycle_momentum", False)


def named_class(config: Any, key: str, base: type) -> tuple[type, dict[str, Any]]:
    """The subclass of `base` that a config's `_target_` names, and the other keys.

    Raises ValueError if `config` is not such a mapping.
    """
    if not isinstance(config, Mapping):
        raise ValueError(
            f"{key}={config!r} has to be null or a mapping: _target_, a {base.__name__}, and its arguments"
        )
    try:
        found = pkgutil.resolve_name(config["_target_"])
    except Exception:  # of whatever module was named
        found = None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"{key}._target_={config.get('_target_')!r} is not a {base.__module__}.{base.__name__}: give the full path"
        )
    return found, {name: value for name, value in config.items() if name != "_target_"}


def _class(config: Any, key: str, base: type) -> tuple[type, dict[str, Any]]:
    """The PyTorch class that `_target_` names, and its arguments.  Raises ValueError on an unknown argument."""
    found, settings = named_class(config, key, base)
    if unknown := sorted(set(settings) - set(inspect.signature(found).parameters) - {"others"}):
        raise ValueError(f"unknown key {key}.{unknown[0]} of {found.__name__}")
    return found, settings


class Rehearsal(nn.Module):
    """A matrix and a vector, without random numbers, to try an optimiser on before a network is built."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2))


@dataclass(frozen=True)
class Schedule:
    """How a network is trained, for `steps` batches.  Raises ValueError on values that cannot be trained with.

    `optimizer` is a class of torch.optim with its arguments; its `others` is a second one for the parameters that are
    not matrices, which Muon does not take.  `lr_scheduler` is a class of torch.optim.lr_scheduler, or None for a
    constant rate; arguments that depend on the run (total_steps, T_max, max_lr) are filled in.  `localisation_lr`
    multiplies the rate of the localisation networks.  `ema` is the decay of an exponential moving average of the
    weights, updated after each block.  `bound` holds the largest norms of the gradient: of all parameters together
    (`all`), or of the localisation networks (`localisation`) and the `rest` separately.
    """

    steps: int
    batch_size: int
    block_steps: int
    optimizer: Mapping[str, Any]
    lr_scheduler: Mapping[str, Any] | None = None
    localisation_lr: int | float = 1.0
    bound: Mapping[str, Any] | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            require(rule, f"schedule.{name}", getattr(self, name))
        _, settings = _class(self.optimizer, "optimizer", Optimizer)
        numbers: dict[str, Any] = {}
        for name, given in (("optimizer", settings), ("optimizer.others", settings.get("others") or {})):
            numbers |= {f"{name}.{key}": given[key] for key in RATES if isinstance(given, Mapping) and key in given}
        for key, value in numbers.items():
            require(below(1 if key.endswith("momentum") else LARGE), key, value)
        for name, given in (("optimizer", self.optimizer), ("schedule.lr_scheduler", self.lr_scheduler)):
            for key, value in given.items() if isinstance(given, Mapping) else ():
                if isinstance(value, float) and not is_finite(value):
                    raise ValueError(f"{name}.{key}={value} leads to a learning rate that is not finite: change it")
        for key, norm in (self.bound or {}).items():
            require(POSITIVE, f"schedule.bound.{key}", norm)
        self._rehearse()

    def _rehearse(self) -> None:
        """Take one step with a small network: PyTorch checks some arguments only then."""
        network = Rehearsal()
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        optimizers = self.optimizers(network)
        schedulers = self.schedulers(optimizers)
        for key, some in (("optimizer", optimizers), ("schedule.lr_scheduler", schedulers)):
            for one in some:
                name = type(one).__name__
                try:
                    one.step()  # type: ignore[call-arg]  # one that asks for more is refused
                except Exception as error:  # of whatever class was named, with whatever arguments
                    raise ValueError(f"{key}: {name} cannot take a step with its arguments: {error}") from None
        for optimizer in optimizers:
            if not all(is_finite(float(group["lr"])) for group in optimizer.param_groups):
                raise ValueError("schedule.lr_scheduler leads to a learning rate that is not finite: change it")

    @property
    def blocks(self) -> int:
        """The number of blocks; the last may be shorter."""
        return math.ceil(self.steps / self.block_steps)

    def optimizers(self, network: nn.Module) -> list[Optimizer]:
        """One over all parameters, or two if `others` names another for those that are not matrices."""
        config = dict(self.optimizer)
        others = config.pop("others", None)
        if others is None:
            return [self._optimizer("optimizer", config, network, lambda p: True)]
        return [
            self._optimizer("optimizer", config, network, lambda p: p.dim() == 2),
            self._optimizer("optimizer.others", others, network, lambda p: p.dim() != 2),
        ]

    def _optimizer(
        self, key: str, config: Mapping[str, Any], network: nn.Module, fits: Callable[[nn.Parameter], bool]
    ) -> Optimizer:
        kind, settings = _class(config, key, Optimizer)
        if "lr" not in settings:
            raise ValueError(f"{key}.lr is missing: set the peak learning rate of {kind.__name__}")
        localisation, rest = parameters(network)
        asked = inspect.signature(kind).parameters
        if "fused" in asked:
            settings.setdefault("fused", True)
        groups = [
            {"params": [p for p in some if fits(p)], "lr": settings["lr"] * factor}
            for some, factor in ((rest, 1.0), (localisation, self.localisation_lr))
        ]
        try:
            return kind([group for group in groups if group["params"]], **settings)
        except Exception as error:  # of whatever class was named, with whatever arguments
            raise ValueError(f"{key}: {kind.__name__} refuses its arguments: {error}") from None

    def schedulers(self, optimizers: list[Optimizer]) -> list[LRScheduler]:
        """One per optimiser, or none if the rate is constant; each sets the rates before the next step."""
        if self.lr_scheduler is None:
            return []
        kind, settings = _class(self.lr_scheduler, "schedule.lr_scheduler", LRScheduler)
        asked = inspect.signature(kind).parameters
        made = []
        for optimizer in optimizers:
            rates = [group["lr"] for group in optimizer.param_groups]
            of_run = {"total_steps": self.steps, "T_max": self.steps, "max_lr": rates}
            filled = {key: value for key, value in of_run.items() if key in asked}
            try:
                made.append(kind(optimizer, **(filled | settings)))
            except Exception as error:  # of whatever class was named, with whatever arguments
                raise ValueError(
                    f"schedule.lr_scheduler: {kind.__name__} refuses its arguments with schedule.steps={self.steps}: "
                    f"{error}"
                ) from None
        return made

    def bounds(self, network: nn.Module) -> list[Bound]:
        """The groups of parameters whose gradients are bounded together, with the largest norm of each."""
        localisation, rest = parameters(network)
        groups = {"all": localisation + rest, "localisation": localisation, "rest": rest}
        return [(groups[key], norm) for key, norm in (self.bound or {}).items() if groups[key]]
