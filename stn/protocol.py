"""The interface of a transform T_theta, and the checks of what is passed to one."""

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Transform(Protocol):
    """The interface of every transform in `stn.transforms` and of your own.

    `num_params` is P, the length of theta; `dims` is 2 or 3; `identity` is the theta of the identity map.  A call maps
    theta (B, P) and target (N, dims) to source (B, N, dims).

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
    """Raise ValueError on anything but a transform, such as `Affine` instead of `Affine()`."""
    if isinstance(transform, type):
        raise ValueError(f"the transform has to be an object, got the class: write {transform.__name__}()")
    wanted = ("num_params", "dims", "identity", "__call__")
    if not all(hasattr(transform, name) for name in wanted):  # isinstance does not see through torch.compile's wrapper
        name = type(transform).__name__ if isinstance(transform, nn.Module) else repr(transform)
        raise ValueError(f"{name} is not a transform: it needs num_params, dims, identity and __call__")


def is_whole(n: object) -> bool:
    """Whether n is a whole number, of NumPy too, but no bool."""
    return isinstance(n, Integral) and not isinstance(n, bool)


def check_size(name: str, size: tuple[int, ...], dims: int, of: str) -> None:
    """Raise ValueError unless `size` is a tuple of `dims` positive whole numbers."""
    fits = isinstance(size, Sequence) and len(size) == dims and all(is_whole(n) and n > 0 for n in size)
    if not fits:
        got = tuple(size) if isinstance(size, Sequence) else size
        raise ValueError(f"{of} needs {name} of {dims} positive whole numbers, got {got}")


def refuse_other(module: nn.Module, name: str, values: tuple[float, ...], note: str) -> None:
    """Write `values`, fixed at construction, into the state dict of `module`; refuse a state without them.

    They are a buffer, which the state of every wrapper then holds (FSDP, functional_call).  But the state has the
    values of construction, whatever `to_empty` or `half` did to the buffer, and so does the buffer once a state is
    loaded, even one that was rounded to half precision.
    """
    module._in_state = name  # type: ignore[assignment]
    if name not in module._buffers:
        module.register_buffer(name, torch.tensor(values, dtype=torch.float32, device="cpu"))
    module.register_state_dict_post_hook(partial(_write, name, values))
    module.register_load_state_dict_pre_hook(partial(_refuse_other, name, values, note))


def _write(
    name: str, values: tuple[float, ...], module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any
) -> None:
    if (buffer := module._buffers[name]) is not None:
        state[prefix + name] = torch.tensor(values, dtype=torch.float32, device="cpu").to(buffer)


def _refuse_other(
    name: str,
    values: tuple[float, ...],
    note: str,
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    key, own = prefix + name, torch.tensor(values, dtype=torch.float32, device="cpu")
    buffer, given = module._buffers[name], state.get(key)
    if given is None:
        if any(other.startswith(prefix) for other in state):
            errors.append(f"{key} is missing from the state: {note}.")
    elif type(given) is Tensor and not given.is_meta:
        if not _same(given.detach().cpu(), own):
            found = tuple(given.flatten().tolist())
            errors.append(f"{key} is {found} in the state, but {values} here: build the module with the same values.")
        if buffer is not None:
            state[key] = own.to(given.device, buffer.dtype)


def _same(given: Tensor, own: Tensor) -> bool:
    """Whether these are the module's own values, possibly rounded to their dtype, or in float16 before."""
    rounded = (own.to(dtype).float() for dtype in {own.dtype, given.dtype, torch.float16})
    return given.shape == own.shape and any(
        torch.allclose(given.float(), each, rtol=1e-6, atol=1e-6) for each in rounded
    )


def check_theta(transform: Transform, *thetas: Tensor) -> None:
    """Raise ValueError unless every theta is (B, P)."""
    for theta in thetas:
        if theta.dim() != 2 or theta.shape[1] != transform.num_params:
            raise ValueError(
                f"{type(transform).__name__} takes theta (B, {transform.num_params}), got theta {tuple(theta.shape)}"
            )


def check_shapes(transform: Transform, theta: Tensor, target: Tensor) -> None:
    """Raise ValueError unless theta is (B, P) and target (N, dims)."""
    check_theta(transform, theta)
    if target.dim() != 2 or target.shape[1] != transform.dims:
        raise ValueError(
            f"{type(transform).__name__} takes target (N, {transform.dims}), got target {tuple(target.shape)}"
        )
