"""Localisation networks f_loc (Sect. 3.1, A.4): from the input feature map to theta."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stn.protocol import Transform, check_transform, refuse_other
from stn.sampler import without_autocast
from stn.transforms import aligned_corners_factors


class Regression(nn.Linear):
    """The final regression layer: theta = identity + W x + b, with W and b zero at the start.

    This is A.4's "zero weights, bias = identity", except that the identity is kept apart from b, so that weight decay
    does not pull theta towards the zero matrix.  An initialisation of all layers after construction, such as
    network.apply(init), replaces the zeros: call `reset_parameters` after it.  `start` replaces the transform's
    identity where a network should begin elsewhere.  Computed in float32 under autocast, since half precision moves the
    grid by up to a pixel.  Raises ValueError on a `start` of the wrong length.

    The identity is part of the state dict, and a state with another identity, or without one, does not load.  The bias
    of a plain `nn.Linear` already holds the identity, which would count twice: `from_linear` converts it.
    `complete_state` adds the identity to a state from a version of this library that did not store it.  `weight_norm`
    and `spectral_norm` on it give nan, since W starts at zero.

    >>> Regression(5, Affine())(torch.rand(1, 5))
    tensor([[1., 0., 0., 0., 1., 0.]], grad_fn=<AddBackward0>)
    """

    identity: Tensor

    def __init__(self, in_features: int, transform: Transform, start: tuple[float, ...] | None = None):
        check_transform(transform)
        start = transform.identity if start is None else tuple(start)
        if len(start) != transform.num_params:
            raise ValueError(
                f"{type(transform).__name__} has {transform.num_params} parameters, got a start of {len(start)}"
            )
        self.start = start
        super().__init__(in_features, transform.num_params)
        note = "Regression.from_linear converts an nn.Linear, stn.complete_state completes an older state"
        refuse_other(self, "identity", start, note)

    def reset_parameters(self) -> None:
        """Set theta to the identity.  Draws as many random numbers as nn.Linear, so that later draws do not change."""
        super().reset_parameters()
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.register_buffer("identity", torch.tensor(self.start, dtype=self.weight.dtype, device=self.weight.device))

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b p"]:
        return _linear(x, self.weight, self.bias, self.identity)

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError("torch.jit.script cannot compile a Regression: use torch.export, or torch.jit.trace")

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        transform: Transform,
        aligned_corners: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> "Regression":
        """The same theta = W x + b as a trained `nn.Linear`, the last layer of most tutorials' localisation networks.

        If that network samples with `align_corners=True`, pass `aligned_corners` = (size of U, size of V): theta is
        then converted to our coordinates (`aligned_corners_factors`).  Raises ValueError if the shapes do not fit.

        >>> linear = nn.Linear(5, 6)
        >>> x = torch.rand(2, 5)
        >>> torch.allclose(Regression.from_linear(linear, Affine())(x), linear(x), atol=1e-6)
        True
        """
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"from_linear takes an nn.Linear, the last layer alone, got {type(linear).__name__}")
        if linear.out_features != transform.num_params:
            raise ValueError(
                f"{type(transform).__name__} has {transform.num_params} parameters, "
                f"the linear layer has {linear.out_features} outputs"
            )
        layer = cls(linear.in_features, transform).to(linear.weight)
        factors: tuple[float, ...] = (1.0,) * transform.num_params
        if aligned_corners is not None:
            factors = aligned_corners_factors(transform, *aligned_corners)
        with torch.no_grad():
            factor = torch.tensor(factors).to(linear.weight)
            bias = torch.zeros_like(factor) if linear.bias is None else linear.bias
            layer.weight.copy_(factor[:, None] * linear.weight)
            layer.bias.copy_(factor * bias - layer.identity)
        return layer


@torch.fx.wrap  # one call in the graph of torch.fx, which would lose the autocast context otherwise
def _linear(x: Tensor, weight: Tensor, bias: Tensor, identity: Tensor) -> Tensor:
    with without_autocast(x.device.type):
        return identity + F.linear(x.to(weight.dtype), weight, bias)


def complete_state(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` plus the constants of `network` (identities, scales, sizes) that older state dicts do not hold.

    Nothing checks that they fit: use it only where the weights come from a network with the same constants.

    >>> layer = Regression(5, Affine())
    >>> layer.load_state_dict(complete_state(layer, {"weight": torch.ones(6, 5), "bias": torch.zeros(6)}))
    <All keys matched successfully>
    """
    mine = network.state_dict()
    constants = [
        f"{name}.{module._in_state}".lstrip(".")
        for name, module in network.named_modules()
        if hasattr(module, "_in_state")
    ]
    return {**{key: mine[key] for key in constants}, **state}


def num_features(features: nn.Module, in_shape: tuple[int, ...]) -> int:
    """The number of outputs of `features` for one input of `in_shape` (C, H, W)."""
    with torch.no_grad():
        return features(torch.zeros(1, *in_shape)).numel()


class SumPool2d(nn.AvgPool2d):
    """The sum over k x k pixels, as k^2 times their mean: ONNX has no equivalent of `divisor_override=1`."""

    def __init__(self, kernel_size: int):
        super().__init__(kernel_size)
        self.scale = float(kernel_size**2)

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.scale * super().forward(u)


def fully_connected(
    in_shape: tuple[int, ...], transform: Transform, hidden: Sequence[int] = (32, 32, 32)
) -> nn.Sequential:
    """The localisation network of an ST-FCN (A.4): fully connected layers of 32 units, then the regression of theta.

    >>> fully_connected((1, 28, 28), Affine())(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 6])
    """
    widths = [torch.Size(in_shape).numel(), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, Regression(widths[-1], transform))


def convolutional(in_shape: tuple[int, ...], transform: Transform, channels: int = 20) -> nn.Sequential:
    """The localisation network of an ST-CNN (A.4): input / 2 - conv 5x5/20 - max 2 - conv 5x5/20 - FC 20 - theta.

    The input is summed over 2 x 2 pixels.  Most of a digit's image is empty, and with the mean, four times as small,
    the network learns more slowly.  ReLU comes after the pool: the same function on a quarter of the map.  Raises
    ValueError on inputs below 26 x 26 px, of which these layers leave nothing.

    >>> convolutional((1, 28, 28), Affine())(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 6])
    """
    if len(in_shape) != 3 or min(in_shape[1:]) < 26:
        raise ValueError(f"convolutional takes an in_shape (C, H, W) of at least 26 x 26 px, got {tuple(in_shape)}")
    features = nn.Sequential(
        SumPool2d(2),
        nn.Conv2d(in_shape[0], channels, 5),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 5),
        nn.ReLU(),
        nn.Flatten(),
    )
    return nn.Sequential(
        features, nn.Linear(num_features(features, in_shape), channels), nn.ReLU(), Regression(channels, transform)
    )
