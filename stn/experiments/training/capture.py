"""The step as a CUDA graph: recorded once, then replayed, so that a small network's step costs what its kernels cost.

A replay runs the very kernels that `step` has launched while it was recorded, on the same addresses.  What changes from
one step to the next lives on the device: the weights, the optimiser's state, the learning rates (tensors, which the
schedulers fill between two replays) and the state of the random generator, which is registered with the graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

WARM_UP = 3  # steps taken before the recording: they make the optimiser's state, and libraries choose their kernels


@contextmanager
def capturable(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Tell Adam that it may be recorded: it refuses otherwise, and warns of every other step if it is told so at once.

    Where its kernels are fused this changes nothing else: its count of steps lives on the device anyway.
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

    The first calls are steps of the training like all others, and recording takes none, so nothing has to be undone.
    `take` returns its values in tensors that the next replay overwrites; `optimizers` are those whose steps it takes.
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
