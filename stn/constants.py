"""Constant tensors made once and kept: grids of pixel centres and the matrices made from them.

A kept tensor is a real one whatever the caller is doing: it is made in a thread of its own, which no mode of the caller
reaches (inference mode, autocast, functorch, a default device).  Where tensors are not real (FakeTensorMode,
torch.export, torch.compile) nothing is kept and nothing kept is used: the constant is part of the caller's graph.
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


# `Tensor._version` has no public name, but it is what autograd itself relies on.  The public ways are to compare with a
# copy at every use, slower than to make the constant anew, or to hand out copies, which is what keeping them avoids.
@dataclass(frozen=True)
class Kept:
    """A constant, its version when it was made, and the tensor that it was made of, if any, with that one's version."""

    tensor: Tensor
    version: int
    of: tuple[Callable[[], Tensor | None], int] | None

    def holds(self, of: Tensor | None) -> bool:
        """Whether nobody has written into it, nor into what it was made of."""
        if of is None or self.of is None:
            return of is None and self.of is None and self.tensor._version == self.version
        made_of, version = self.of
        return made_of() is of and of._version == version and self.tensor._version == self.version


class Constants:
    """Tensors by key, at most `limit_bytes` of them: the least recently used one goes first.

    Safe in threads.  A tensor that somebody has written into is dropped and made anew.  What a CUDA graph captures is
    kept for good, since a replay reads it at its address; what is made during a capture is part of that graph alone.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._keys: dict[int, Hashable] = {}  # of the tensors kept, by their id
        self._captured: dict[Hashable, Tensor] = {}
        self._lock = RLock()
        if hasattr(os, "register_at_fork"):  # a lock that another thread holds would stay locked in the child
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = RLock()

    def find(self, key: Hashable, of: Tensor | None = None) -> Tensor | None:
        """The tensor kept under this key, and made `of` this very tensor if of one, None where there is none."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or not kept.holds(of):
                return None
            self._kept.move_to_end(key)
            if kept.tensor.is_cuda and torch.cuda.is_current_stream_capturing():
                self._captured[key] = kept.tensor
            return kept.tensor

    def make(
        self, key: Hashable, make: Callable[..., Tensor], device: torch.device, of: Tensor | None = None
    ) -> Tensor:
        """Keep what `make()` gives on the CPU under this key, or `make(of)` with `of` on the CPU.

        One that is made `of` a tensor is kept for as long as that tensor lives and is not written into.
        """
        given = () if of is None else (of.detach().cpu(),)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return make(*given).to(device)
        version = 0 if of is None else of._version
        with ThreadPoolExecutor(1) as thread:
            tensor = thread.submit(lambda: make(*given).to(device)).result()
        source = None if of is None else (weakref.ref(of, lambda _: self._drop(key)), version)
        with self._lock:
            self._drop(key)
            self._kept[key], self._keys[id(tensor)] = Kept(tensor, tensor._version, source), key
            while self.nbytes > self.limit_bytes:
                self._drop(next(iter(self._kept)))
        return tensor

    def key_of(self, tensor: Tensor) -> Any:
        """The key that this very tensor is kept under, None for any other tensor."""
        with self._lock:
            key = self._keys.get(id(tensor))
            if key is None:
                return None
            kept = self._kept[key]
            return key if kept.tensor is tensor and tensor._version == kept.version else None

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(kept.tensor.nbytes for kept in list(self._kept.values()))

    def _drop(self, key: Hashable) -> None:
        with self._lock:
            if (kept := self._kept.pop(key, None)) is not None:
                self._keys.pop(id(kept.tensor), None)


def real(device: torch.device | str) -> torch.device | None:
    """The device with its index where tensors made now are real ones, None in a tracing mode."""
    if torch.compiler.is_compiling():
        return None
    probe = torch.empty(0, device=device)
    return probe.device if type(probe) is Tensor else None


def constant(tensor: Tensor) -> bool:
    """Whether what is made of this tensor can be kept: it is real and needs no gradient."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.requires_grad or tensor.is_inference():
        return False
    try:
        tensor.untyped_storage()  # those that functorch has wrapped have none
    except (NotImplementedError, RuntimeError):
        return False
    return real(tensor.device) is not None


def made_of(constants: Constants, name: Hashable, of: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """make(of), kept where that is possible: `name` tells what is made of the same tensor apart."""
    key = (name, id(of))
    if not torch.compiler.is_compiling() and not of.requires_grad:
        if (found := constants.find(key, of)) is not None:
            return found
        if constant(of):
            return constants.make(key, make, of.device, of)
    return make(of)
