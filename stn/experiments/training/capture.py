"""The step as a CUDA graph: recorded once, then replayed, so that a small network's step takes only its kernels' time.

A replay runs exactly the kernels that `step` launched during the recording, on the same addresses.  Everything that
changes between steps is on the device: the weights, the optimiser's state, the learning rates (tensors that the
schedulers fill between replays) and the state of the random generator, which is registered with the graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

WARM_UP = 3  # steps before the recording, which create the optimiser's state and let libraries choose their kernels


@contextmanager
def capturable(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Set Adam's `capturable` during the recording only: without it Adam refuses, with it all other steps warn.

    With fused kernels this changes nothing else, since the step count is on the device anyway.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if group.get("capturable") is False]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


class Captured:
    """Calls `take` for the first steps, then records it once and replays the graph.

    The first calls are training steps like all others, and the recording takes no step, so nothing has to be undone.
    `take` returns tensors that the next replay overwrites; `optimizers` are those that it steps.
    """

    def __init__(
        self, take: Callable[[], dict[str, Tensor]], generator: Generator, optimizers: Sequence[Optimizer] = ()
    ):
        self.take = take
        self.generator = generator
        self.optimizers = optimizers
        self.taken = 0
        self.stream = torch.cuda.Stream(generator.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.values: dict[str, Tensor] = {}

    def __call__(self) -> dict[str, Tensor]:
        if self.taken < WARM_UP:
            self.taken += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.values = self.take()
            torch.cuda.current_stream().wait_stream(self.stream)
            return self.values
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            self.graph.register_generator_state(self.generator)
            with capturable(self.optimizers), torch.cuda.graph(self.graph, stream=self.stream):
                self.values = self.take()
        self.graph.replay()
        return self.values
