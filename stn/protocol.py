"""What a transform T_theta has to offer, and the checks in one line of what is given to one."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Transform(Protocol):
    """What every transform of `stn.transforms`, and any of your own, has to offer.

    >>> class Mirror:
    ...     num_params, dims, identity = 1, 2, (0.0,)
    ...
    ...     def __call__(self, theta, target):
    ...         return target * torch.tensor([-1, 1]) + theta[:, :, None] * torch.tensor([1, 0])
    >>> isinstance(Mirror(), Transform)
    True
    """

    num_params: int
    dims: int

    @property
    def identity(self) -> tuple[float, ...]: ...
    def __call__(self, theta: Tensor, target: Tensor) -> Tensor: ...


def check_transform(transform: Transform) -> None:
    """Raise ValueError on what is no transform, such as `Affine` in the place of `Affine()`."""
    if isinstance(transform, type):
        raise ValueError(f"the transform has to be an object, got the class: write {transform.__name__}()")
    if not isinstance(transform, Transform):
        raise ValueError(f"{transform!r} is no transform: it needs num_params, dims, identity and a call")


def check_size(name: str, size: tuple[int, ...], dims: int, of: str) -> None:
    """Raise ValueError unless `size` is a tuple of `dims` positive whole numbers."""
    fits = isinstance(size, Sequence) and len(size) == dims and all(isinstance(n, int) and n > 0 for n in size)
    if not fits:
        got = tuple(size) if isinstance(size, Sequence) else size
        raise ValueError(f"{of} needs {name} of {dims} positive numbers, got {got}")


def refuse_other(module: nn.Module, name: str, values: tuple[float, ...], note: str) -> None:
    """Register a buffer of what was fixed at construction, so that a state dict with other values, or none, is refused.

    The values that are kept are the module's own: a state in half precision does not round them.
    """
    if name not in dict(module.named_buffers(recurse=False)):
        module.register_buffer(name, torch.tensor(values))
    module.register_load_state_dict_pre_hook(partial(_refuse_other, name, values, note))


def _refuse_other(
    name: str, values: tuple[float, ...], note: str, module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any
) -> None:
    errors: list[str] = rest[-1]
    key, own = prefix + name, torch.tensor(values, device="cpu")
    given = state.get(key)
    if given is None:
        if any(other.startswith(prefix) for other in state):
            errors.append(f"{key} is missing from the state: {note}.")
    elif given.shape == own.shape and type(given) is Tensor and not given.is_meta:
        if not torch.allclose(given.detach().to("cpu", own.dtype), own, rtol=1e-3, atol=1e-3):
            errors.append(f"{key} is {tuple(given.tolist())} in the state, but {values} here: build it with the same.")
        state[key] = own.to(given.device, module.get_buffer(name).dtype)


def check_shapes(transform: Transform, theta: Tensor, target: Tensor) -> None:
    """Raise ValueError unless theta is (B, P) and target (N, dims)."""
    if theta.dim() != 2 or theta.shape[1] != transform.num_params:
        raise ValueError(
            f"{type(transform).__name__} takes theta (B, {transform.num_params}), got theta {tuple(theta.shape)}"
        )
    if target.dim() != 2 or target.shape[1] != transform.dims:
        raise ValueError(
            f"{type(transform).__name__} takes target (N, {transform.dims}), got target {tuple(target.shape)}"
        )
