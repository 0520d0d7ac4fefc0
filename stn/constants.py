"""A cache of constant tensors: grids of pixel centres and the matrices computed from them.

A cached tensor is always a real one.  A separate thread makes it, which no mode of the caller reaches (inference mode,
autocast, functorch, a default device).  Where tensors are not real (FakeTensorMode, torch.export, torch.compile) the
cache is neither read nor written: the constant becomes part of the caller's graph.
"""

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import Tensor


# `Tensor._version` is not public, but autograd itself relies on it.  The public ways are to compare with a copy at each
# use, which is slower than computing the constant again, or to hand out copies, which the cache is there to avoid.
@dataclass(frozen=True)
class Cached:
    """A constant and its version when it was made; the tensor that it was computed from, if any, and that version."""

    tensor: Tensor
    version: int
    of: tuple[Callable[[], Tensor | None], int] | None

    def holds(self, of: Tensor | None) -> bool:
        """Whether neither the constant nor the tensor it was computed from has been written to."""
        if of is None or self.of is None:
            return of is None and self.of is None and self.tensor._version == self.version
        made_of, version = self.of
        return made_of() is of and of._version == version and self.tensor._version == self.version


class Constants:
    """Tensors by key, at most `limit_bytes` in all: the least recently used tensor is dropped first.

    Thread-safe.  A tensor that has been written to is dropped and made again.  A tensor that a CUDA graph captures is
    never freed, since a replay reads its address; one that is made during a capture belongs to that graph alone.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._cached: OrderedDict[Hashable, Cached] = OrderedDict()
        self._keys: dict[int, Hashable] = {}  # by the id of the cached tensor
        self._captured: dict[Hashable, Tensor] = {}
        self._lock = RLock()
        if hasattr(os, "register_at_fork"):  # a lock held by another thread would stay locked in the child
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = RLock()

    def find(self, key: Hashable, of: Tensor | None = None) -> Tensor | None:
        """The tensor under this key (and computed from this very tensor `of`), None if there is none."""
        with self._lock:
            cached = self._cached.get(key)
            if cached is None or not cached.holds(of):
                return None
            self._cached.move_to_end(key)
            if cached.tensor.is_cuda and torch.cuda.is_current_stream_capturing():
                self._captured[key] = cached.tensor
            return cached.tensor

    def make(
        self, key: Hashable, make: Callable[..., Tensor], device: torch.device, of: Tensor | None = None
    ) -> Tensor:
        """Compute `make()` on the CPU, or `make(of)` with `of` on the CPU, and cache the result under this key.

        A result computed from a tensor `of` is cached for as long as that tensor lives and is not written to.
        """
        given = () if of is None else (of.detach().cpu(),)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return make(*given).to(device)
        version = 0 if of is None else of._version
        with ThreadPoolExecutor(1) as thread:
            tensor = thread.submit(lambda: make(*given).to(device)).result()
        if tensor.nbytes > self.limit_bytes:  # it would drop all others and not stay itself
            return tensor
        source = None if of is None else (weakref.ref(of, lambda _: self._drop(key)), version)
        with self._lock:
            self._drop(key)
            self._cached[key], self._keys[id(tensor)] = Cached(tensor, tensor._version, source), key
            while self.nbytes > self.limit_bytes:
                self._drop(next(iter(self._cached)))
        return tensor

    def key_of(self, tensor: Tensor) -> Any:
        """The key of this very tensor, None if it is not in the cache."""
        with self._lock:
            key = self._keys.get(id(tensor))
            if key is None:
                return None
            cached = self._cached[key]
            return key if cached.tensor is tensor and tensor._version == cached.version else None

    @property
    def nbytes(self) -> int:
        """The size of the cache in bytes."""
        return sum(cached.tensor.nbytes for cached in list(self._cached.values()))

    def _drop(self, key: Hashable) -> None:
        with self._lock:
            if (cached := self._cached.pop(key, None)) is not None:
                self._keys.pop(id(cached.tensor), None)


def real(device: torch.device | str) -> torch.device | None:
    """The device with its index where new tensors are real, None in a tracing mode."""
    if torch.compiler.is_compiling():
        return None
    probe = torch.empty(0, device=device)
    return probe.device if type(probe) is Tensor else None


def constant(tensor: Tensor) -> bool:
    """Whether results computed from this tensor can be cached: it is real and needs no gradient."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.requires_grad or tensor.is_inference():
        return False
    try:
        tensor.untyped_storage()  # a tensor wrapped by functorch has none
    except (NotImplementedError, RuntimeError):
        return False
    return real(tensor.device) is not None


def made_of(constants: Constants, name: Hashable, of: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """make(of), cached where that is possible; `name` tells apart results computed from the same tensor."""
    key = (name, id(of))
    if not torch.compiler.is_compiling() and not of.requires_grad:
        if (found := constants.find(key, of)) is not None:
            return found
        if constant(of):
            return constants.make(key, make, of.device, of)
    return make(of)
