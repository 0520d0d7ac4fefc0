"""One training step as one function of tensors: draw, distort, forward, loss, backward, bound, update.

It never waits for a value and never copies between host and device, so that a GPU can replay it as a captured graph.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

# Raise it when a change alters what a step, a schedule or a bound computes.
# 2: PyTorch's own learning rate schedulers, whose cycle ends one step earlier than in the first records.
REVISION = 2

Batch = tuple[Tensor, Any]
Bound = tuple[list[nn.Parameter], int | float]  # parameters, and the largest common norm of their gradients


@runtime_checkable
class Objective(Protocol):
    """What is minimised and what is reported.

    `prepare` is called once before the first step, with the data on their device.  `loss` returns the loss of one
    training batch, and the other values to draw as curves, in the units of the record.  `test` returns the metrics of
    one test batch, which are averaged over the test set; `after_test` returns those that are not averages.
    `checksums` returns the sha256 of the files that the loss depends on.
    """

    def prepare(self, data: Any) -> None: ...
    def loss(self, network: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]: ...
    def test(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]: ...
    def after_test(self) -> dict[str, float]: ...
    def checksums(self) -> dict[str, str]: ...


def split(batch: Batch, n: int) -> list[Batch]:
    """A batch in n equal parts; for n > 1 the labels have to be one tensor."""
    return [batch] if n == 1 else list(zip(*(values.chunk(n) for values in batch), strict=True))


def step(
    network: nn.Module,
    objective: Objective,
    draw: Callable[[Generator], Batch],
    generator: Generator,
    optimizers: Sequence[torch.optim.Optimizer],
    bounds: Sequence[Bound],
    accumulate: int = 1,
    share: tuple[int, int] = (0, 1),
    exchange: Callable[[list[Tensor]], None] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Take one step; return `loss` and the objective's other values, as means over the batch, on the device.

    `draw` makes the whole batch.  `share` (i, n) selects part i of n, which is processed in `accumulate` parts, one
    after another.  `exchange` averages the gradients over all processes, in place.
    """
    i, n = share
    parts = split(draw(generator), n * accumulate)[i * accumulate : (i + 1) * accumulate]
    values = defaultdict(list)
    for optimizer in optimizers:
        optimizer.zero_grad()
    for part in parts:
        loss, also = objective.loss(network, part)
        (loss / accumulate).backward()
        for name, value in {"loss": loss, **also}.items():
            values[name].append(value.detach())
    if exchange is not None:
        exchange([p.grad for p in network.parameters() if p.grad is not None])
    for parameters, norm in bounds:
        nn.utils.clip_grad_norm_(parameters, norm)
    for optimizer in optimizers:
        optimizer.step()
    return {name: torch.stack(some).mean() for name, some in values.items()}
