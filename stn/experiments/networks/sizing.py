"""The width of a network: as stated, or the largest for a budget of trainable parameters."""

from collections.abc import Callable

import torch
from torch import nn


def num_params(network: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def sized(build: Callable[[int], nn.Module], width: int, budget: int | None) -> nn.Module:
    """`build(width)`, or with a budget the widest network that it allows."""
    return build(width if budget is None else solve_width(build, budget))


def solve_width(build: Callable[[int], nn.Module], budget: int) -> int:
    """The largest width with at most `budget` trainable parameters, whose number has to grow with the width.

    Raises ValueError if a width of 1 already has more.
    """

    def cost(width: int) -> int:
        with torch.device("meta"):
            return num_params(build(width))

    if cost(1) > budget:
        raise ValueError(f"budget={budget} is too small: even with a width of 1 this network has {cost(1)} parameters")
    low, high = 1, 2
    while cost(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low
