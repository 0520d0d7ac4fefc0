"""The spatial transformer (Sect. 3, Figure 2): localisation network, grid generator and sampler in one module."""

from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.sampler import KERNELS, regular_grid, sample
from stn.transforms import Transform


class SpatialTransformer(nn.Module):
    """V = sample(U, T_theta(G)) with theta = f_loc(U); any depth, any number, in series or in parallel.

    `localisation` is any module from u (B, C, H, W) to theta (B, P), best ending in `stn.localisation.Regression`,
    which starts it at the identity; `transform` any transform of `stn.transforms`; `out_size` the (H', W') of V, None
    for that of U.  With a volume (B, C, D, H, W) and `Affine3d` it works in 3D.

        v = st(u)                                       # V alone
        v, theta = st(u, return_theta=True)             # theta for the rest of the network
        theta = st.localisation(u); v = st.warp(u, theta)   # the two halves
    """

    def __init__(
        self,
        localisation: nn.Module,
        transform: Transform,
        out_size: tuple[int, ...] | None = None,
        kernel: str = "bilinear",
    ):
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
        if out_size is not None and (len(out_size) != transform.dims or min(out_size) < 1):
            raise ValueError(
                f"{type(transform).__name__} needs an out_size of {transform.dims} positive numbers, "
                f"got {tuple(out_size)}"
            )
        self.localisation = localisation
        self.transform = transform
        self.out_size = None if out_size is None else tuple(out_size)
        self.kernel = kernel

    def forward(
        self, u: Float[Tensor, "b c *size"], return_theta: bool = False
    ) -> Float[Tensor, "b c *out"] | tuple[Float[Tensor, "b c *out"], Float[Tensor, "b p"]]:
        theta = self.localisation(u)
        v = self.warp(u, theta)
        return (v, theta) if return_theta else v

    def warp(self, u: Float[Tensor, "b c *size"], theta: Float[Tensor, "b p"]) -> Float[Tensor, "b c *out"]:
        """V for a given theta; grid and theta in float32 at least, under autocast too."""
        if u.dim() != self.transform.dims + 2:
            raise ValueError(
                f"{type(self.transform).__name__} warps u with {self.transform.dims + 2} dimensions "
                f"(B, C, {'D, ' * (self.transform.dims - 2)}H, W), got u {tuple(u.shape)}"
            )
        size = self.out_size or tuple(u.shape[2:])
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        source = self.transform(theta, regular_grid(size, theta.dtype, theta.device))
        v = sample(u, source, size, self.kernel)
        if (calls := _calls.get()) is not None:
            calls.append((self, u, theta, source, v))
        return v


@dataclass(frozen=True)
class Warp:
    """What one spatial transformer did to a batch; `name` is its place in the network, as in `named_modules`.

    The warps of a transformer that is used more than once are called `name.1`, `name.2` and so on.  `identity` is the
    theta of its transform's identity.
    """

    name: str
    u: Tensor
    theta: Tensor
    source: Tensor
    v: Tensor
    identity: tuple[float, ...]


Call = tuple[SpatialTransformer, Tensor, Tensor, Tensor, Tensor]
_calls: ContextVar[list[Call] | None] = ContextVar("calls of warp, while traced", default=None)


def trace(network: nn.Module, u: Tensor) -> list[Warp]:
    """Run network(u) in eval mode without gradients; return what every SpatialTransformer in it did, call by call."""
    training = [module for module in network.modules() if module.training]
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        with torch.no_grad():
            network.eval()(u)
    finally:
        _calls.reset(token)
        for module in training:
            module.training = True
    names = {module: name for name, module in network.named_modules()}
    uses, so_far = Counter(module for module, *_ in calls), Counter[SpatialTransformer]()
    warps = []
    for module, given, theta, source, v in calls:
        so_far[module] += 1
        name = names[module] if uses[module] == 1 else f"{names[module]}.{so_far[module]}".lstrip(".")
        warps.append(Warp(name, given, theta, source, v, module.transform.identity))
    return warps
