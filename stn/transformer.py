"""The spatial transformer (Sect. 3, Figure 2): localisation network, grid generator and sampler in one module."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from stn.linear_form import LinearForm
from stn.protocol import Transform, check_size, check_transform
from stn.sampler import check_modes, regular_grid, sample


class SpatialTransformer(nn.Module):
    """V = sample(U, T_theta(G)) with theta = f_loc(U).  A network may hold any number, in series or in parallel.

    `localisation` is any module from u (B, C, H, W) to theta (B, P).  It should end in `stn.Regression`, which starts
    it at the identity.  `transform` is any transform of `stn.transforms`, `out_size` the (H', W') of V (None: that of
    U).  `kernel` and `padding_mode` are those of `stn.sample`.  `Affine3d` warps volumes (B, C, D, H, W).  Coordinates
    go from -1 to 1 along both axes, whatever the aspect of U: see `Affine` and `Similarity`.

        v = st(u)                                       # V alone
        v, theta = st(u, return_theta=True)             # theta for the rest of the network
        theta = st.localisation(u); v = st.warp(u, theta)   # the two halves

    Raises ValueError on arguments that do not fit.  `torch.export`, `torch.compile`, `torch.jit.trace` and both ONNX
    exporters support it.  Under `torch.jit.script` and `torch.fx` it raises TypeError and says what to use.

    >>> st = SpatialTransformer(fully_connected((1, 28, 28), Affine()), Affine(), out_size=(14, 14))
    >>> st(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 1, 14, 14])
    """

    _traced: "tuple[str, list[Call]] | None" = None  # its name and the calls so far, while `trace` runs

    def __init__(
        self,
        localisation: nn.Module,
        transform: Transform,
        out_size: tuple[int, ...] | None = None,
        kernel: str = "bilinear",
        padding_mode: str = "zeros",
    ):
        super().__init__()
        check_modes(kernel, padding_mode)
        check_transform(transform)
        if isinstance(localisation, type) or not callable(localisation):
            raise ValueError(f"the localisation has to be a module that maps u to theta, got {localisation!r}")
        if out_size is not None:
            check_size("an out_size", out_size, transform.dims, type(transform).__name__)
        if kernel == "bicubic" and transform.dims == 3:
            raise ValueError("kernel 'bicubic' is for images, not for volumes: choose bilinear or nearest")
        self.localisation = localisation
        self.transform = transform
        self.out_size = None if out_size is None else tuple(map(int, out_size))
        self.kernel = kernel
        self.padding_mode = padding_mode
        if self.out_size is not None and isinstance(transform, LinearForm):
            transform.check_size(self.out_size)

    def extra_repr(self) -> str:
        return f"out_size={self.out_size}, kernel={self.kernel!r}, padding_mode={self.padding_mode!r}"

    def forward(
        self, u: Shaped[Tensor, "b c *size"], return_theta: bool = False
    ) -> Shaped[Tensor, "b c *out"] | tuple[Shaped[Tensor, "b c *out"], Float[Tensor, "b p"]]:
        if isinstance(u, torch.fx.Proxy):
            raise TypeError(FX)
        theta = self.localisation(u)
        v = self.warp(u, theta)
        return (v, theta) if return_theta else v

    def warp(self, u: Shaped[Tensor, "b c *size"], theta: Float[Tensor, "b p"]) -> Shaped[Tensor, "b c *out"]:
        """V for a given theta; grid and theta in float32 at least, under autocast too."""
        transform = self.transform
        if u.dim() != transform.dims + 2:
            raise ValueError(
                f"{type(transform).__name__} warps u with {transform.dims + 2} dimensions "
                f"(B, C, {'D, ' * (transform.dims - 2)}H, W), got u {tuple(u.shape)}"
            )
        if not isinstance(theta, Tensor):
            raise ValueError(f"the localisation has to return theta (B, P), got {type(theta).__name__}")
        size = self.out_size or tuple(u.shape[2:])
        if torch.jit.is_tracing():
            size = tuple(int(n) for n in size)  # the traced graph is for this size alone
        if isinstance(transform, LinearForm):
            transform.check_size(size)
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        source = transform(theta, regular_grid(size, theta.dtype, theta.device))
        v = sample(u, source, size, self.kernel, self.padding_mode)
        if self._traced is not None:
            name, calls = self._traced
            u, theta, kept = u.clone(), theta.clone(), v.clone()  # a later layer may work in place
            calls.append((name, transform.identity, u, theta, source, kept))
        return v

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(SCRIPT)


FX = (
    "torch.fx cannot trace into a SpatialTransformer: make it a leaf, by Tracer.is_leaf_module or "
    "create_feature_extractor(..., tracer_kwargs={'leaf_modules': [SpatialTransformer]}), or use torch.export"
)
SCRIPT = "torch.jit.script cannot compile a SpatialTransformer: use torch.export, or torch.jit.trace"


@dataclass(frozen=True)
class Warp:
    """What one spatial transformer did to a batch; `name` is its place in the network, as in `named_modules`.

    The warps of a transformer that is used more than once are called `name.1`, `name.2` and so on.  `identity` is the
    theta of its transform's identity.

    >>> st = SpatialTransformer(fully_connected((1, 8, 8), Affine()), Affine(), (4, 4))
    >>> [warp] = trace(nn.Sequential(st), torch.rand(2, 1, 8, 8))
    >>> warp.name, warp.source.shape, warp.v.shape
    ('0', torch.Size([2, 16, 2]), torch.Size([2, 1, 4, 4]))
    """

    name: str
    u: Tensor
    theta: Tensor
    source: Tensor
    v: Tensor
    identity: tuple[float, ...]


Call = tuple[str, tuple[float, ...], Tensor, Tensor, Tensor, Tensor]
_one_trace = RLock()  # two traces of one network at a time would switch each other's modes


@contextmanager
def _watched(network: nn.Module, calls: list[Call]) -> Iterator[None]:
    """`network` in eval mode, with its transformers appending to `calls`; restores both afterwards."""
    training = [each for each in network.modules() if each.training]
    transformers = [(name, m) for name, m in network.named_modules() if isinstance(m, SpatialTransformer)]
    before = [module._traced for _, module in transformers]
    try:
        for name, module in transformers:
            module._traced = (name, calls)
        network.eval()
        yield
    finally:
        for (_, module), outer in zip(transformers, before, strict=True):
            if outer is None:
                del module._traced
            else:
                module._traced = outer
        for each in training:
            each.training = True


def trace(network: nn.Module, *inputs: Any, **kwargs: Any) -> list[Warp]:
    """Run network(*inputs, **kwargs) in eval mode without gradients; return what every SpatialTransformer in it did.

    The warps come in the order of the calls, including those from threads that the network starts.  Code compiled by
    `torch.compile` runs eagerly.  Traces run one at a time in a process.  No other thread may call the network
    meanwhile.

    >>> st = SpatialTransformer(fully_connected((1, 28, 28), Affine()), Affine())
    >>> [warp] = trace(st, torch.rand(2, 1, 28, 28))
    >>> warp.theta[0]
    tensor([1., 0., 0., 0., 1., 0.])
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"trace takes a network, an nn.Module, got {type(network).__name__}")
    calls: list[Call] = []
    with _one_trace, _watched(network, calls), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        network(*inputs, **kwargs)
    uses, so_far = Counter(name for name, *_ in calls), Counter[str]()
    warps = []
    for name, identity, u, theta, source, v in calls:
        so_far[name] += 1
        called = name if uses[name] == 1 else f"{name}.{so_far[name]}".lstrip(".")
        warps.append(Warp(called, u, theta, source, v, identity))
    return warps
