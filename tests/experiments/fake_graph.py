"""A CUDA graph's stand-in on the CPU: it records the operations that PyTorch dispatches, and replays them.

As in a real one, recording computes nothing that lasts, a replay launches the same operations on the same tensors, and
whatever Python decided or read while it was recorded stays as it was then.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stn.experiments.training import engine


def leaves(values: Any) -> Iterator[Any]:
    """The arguments or the results of an operation, which come in lists, tuples and one dict."""
    if isinstance(values, list | tuple | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from leaves(value)
    else:
        yield values


class Recorder(TorchDispatchMode):
    """Records what is dispatched, and undoes what it did to tensors and generators that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.own: set[int] = set()  # storages made while recording
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for generator in [torch.default_generator, *leaves((args, kwargs))]:
            if isinstance(generator, torch.Generator):
                self.generators.setdefault(id(generator), (generator, generator.get_state()))
        if function._schema.is_mutable:
            for tensor in given:
                if tensor.untyped_storage().data_ptr() not in self.own:
                    self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        storages = {tensor.untyped_storage().data_ptr() for tensor in given}
        out = function(*args, **kwargs)
        new = [t for t in leaves(out) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in storages]
        self.own |= {t.untyped_storage().data_ptr() for t in new}
        self.operations.append((function, args, kwargs, [*leaves(out)] if new else []))
        return out

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, value in self.before.values():
                tensor.copy_(value)
        for generator, state in self.generators.values():
            generator.set_state(state)


class FakeGraph:
    """Counts its recordings and replays, over all graphs, in `made`; `recording` is that of one which is under way."""

    made: list["FakeGraph"]
    recording = False

    def __init__(self) -> None:
        self.generator: torch.Generator | None = None
        self.replays = 0
        self.made.append(self)

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generator = generator

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, kept in self.operations:
                for old, new in zip(kept, leaves(function(*args, **kwargs)), strict=bool(kept)):
                    if isinstance(old, Tensor):
                        old.copy_(new)


@contextmanager
def recording(graph: FakeGraph, stream: Any) -> Any:
    assert graph.generator is not None, "a generator has to be registered before the recording"
    with Recorder() as recorder, mock.patch.object(FakeGraph, "recording", True):
        yield
    recorder.undo()
    graph.operations = recorder.operations


@contextmanager
def fake_gpu() -> Any:
    """The engine takes the CPU for a GPU, and records its steps; gives the list of the graphs made.

    PyTorch's optimisers take it for one, too: Adam says whether it may be recorded, and whether it should have been.
    """
    FakeGraph.made = []
    current = SimpleNamespace(is_capturing=lambda: FakeGraph.recording)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = "stn.experiments.training.capture.torch.cuda."
    with (
        mock.patch(cuda + "Stream", return_value=stream),
        mock.patch(cuda + "current_stream", return_value=stream),
        mock.patch(cuda + "stream", return_value=nullcontext()),
        mock.patch(cuda + "CUDAGraph", FakeGraph),
        mock.patch(cuda + "graph", recording),
        mock.patch.object(engine, "on_gpu", return_value=True),
        mock.patch("torch.accelerator.current_accelerator", return_value=torch.device("cuda")),
        mock.patch("torch.accelerator.current_stream", return_value=current),
    ):
        yield FakeGraph.made
