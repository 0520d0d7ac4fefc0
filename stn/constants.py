"""A cache of constant tensors: grids of pixel centres and the matrices computed from them.

A cached tensor is always a real one.  A separate thread makes it, which no mode of the caller reaches (inference mode,
autocast, functorch, a default device).  Where tensors are not real (FakeTensorMode, torch.export, torch.compile) the
cache is neither read nor written: the constant becomes part of the caller's graph.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import RLock, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Constants:
    """Tensors by key, at most `limit_bytes` in all: the least recently used tensor is dropped first.

    Thread-safe.  A tensor that has been written to, or that was told to need a gradient, is dropped and made again.  A
    tensor that a CUDA graph captures is never freed, since a replay reads its address; one that is made during a
    capture belongs to that graph alone.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._cached: OrderedDict[Hashable, tuple[Tensor, int]] = OrderedDict()  # with the version when it was made
        self._keys: dict[int, Hashable] = {}  # by the id of the cached tensor
        self._captured: dict[Hashable, Tensor] = {}
        self._lock = RLock()
        if hasattr(os, "register_at_fork"):  # a lock held by another thread would stay locked in the child
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = RLock()

    def get(self, key: Hashable, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        """The tensor under this key.  If there is none, `make()` computes it on the CPU, to be kept on `device`."""
        with self._lock:
            cached = self._cached.get(key)
            if cached is not None and intact(*cached):
                self._cached.move_to_end(key)
                if cached[0].is_cuda and torch.cuda.is_current_stream_capturing():
                    self._captured[key] = cached[0]
                return cached[0]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return make().to(device)
        tensor = in_new_thread(lambda: make().to(device))
        if tensor.nbytes > self.limit_bytes:  # it would drop all others and not stay itself
            return tensor
        with self._lock:
            self._drop(key)
            self._cached[key], self._keys[id(tensor)] = (tensor, tensor._version), key
            while self.nbytes > self.limit_bytes:
                self._drop(next(iter(self._cached)))
        return tensor

    def key_of(self, tensor: Tensor) -> Any:
        """The key of this very tensor, None if it is not in the cache."""
        with self._lock:
            key = self._keys.get(id(tensor))
            cached = None if key is None else self._cached[key]
            return key if cached is not None and cached[0] is tensor and intact(*cached) else None

    @property
    def nbytes(self) -> int:
        """The size of the cache in bytes."""
        return sum(tensor.nbytes for tensor, _ in list(self._cached.values()))

    def _drop(self, key: Hashable) -> None:
        with self._lock:
            if (cached := self._cached.pop(key, None)) is not None:
                self._keys.pop(id(cached[0]), None)


# `Tensor._version` is not public, but autograd itself relies on it.  The public ways are to compare with a copy at each
# use, which is slower than computing the constant again, or to hand out copies, which the cache is there to avoid.
def intact(tensor: Tensor, version: int) -> bool:
    """Whether this tensor is still the constant that it was at this version."""
    return tensor._version == version and not tensor.requires_grad


def in_new_thread(make: Callable[[], Result]) -> Result:
    """make() in a thread of its own.  An executor's threads cannot start any more once the main thread has ended."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future.result()


def real(device: torch.device | str) -> torch.device | None:
    """The device with its index where new tensors are real, None in a tracing mode."""
    if torch.compiler.is_compiling():
        return None
    probe = torch.empty(0, device=device)
    return probe.device if type(probe) is Tensor else None


def constant(tensor: Tensor) -> bool:
    """Whether the values of this tensor can be read and need no gradient: it is a real tensor."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.requires_grad:
        return False
    try:
        tensor.untyped_storage()  # a tensor wrapped by functorch has none
    except (NotImplementedError, RuntimeError):
        return False
    return real(tensor.device) is not None
