"""Localisation networks f_loc (Sect. 3.1, A.4): the input feature map in, theta out."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.transforms import Transform


class Regression(nn.Linear):
    """The final regression layer: theta = identity + W x + b, with W and b zero at the start.

    The paper's "zero weights, bias = identity"; holding the identity apart from b keeps weight decay from pulling theta
    to the zero matrix.  `start` replaces the transform's identity where a network should begin elsewhere.
    Computed in float32 under autocast, since half precision would blur the grid by a pixel.
    """

    identity: Tensor

    def __init__(self, in_features: int, transform: Transform, start: tuple[float, ...] | None = None):
        start = transform.identity if start is None else tuple(start)
        if len(start) != transform.num_params:
            raise ValueError(
                f"{type(transform).__name__} has {transform.num_params} parameters, got a start of {len(start)}"
            )
        super().__init__(in_features, transform.num_params)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.register_buffer("identity", torch.tensor(start), persistent=False)

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b p"]:
        with torch.autocast(x.device.type, enabled=False):
            return self.identity + super().forward(x.to(self.weight.dtype))


def num_features(features: nn.Module, in_shape: tuple[int, ...]) -> int:
    """How many values `features` gives for one input of `in_shape` (C, H, W)."""
    with torch.no_grad():
        return features(torch.zeros(1, *in_shape)).numel()


class SumPool2d(nn.AvgPool2d):
    """The sum over k x k pixels: k^2 times their mean.  `divisor_override=1` would not survive the export to ONNX."""

    def __init__(self, kernel_size: int):
        super().__init__(kernel_size)
        self.scale = float(kernel_size**2)

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.scale * super().forward(u)


def fully_connected(
    in_shape: tuple[int, ...], transform: Transform, hidden: Sequence[int] = (32, 32, 32)
) -> nn.Sequential:
    """A.4's localisation of an ST-FCN: fully connected layers of 32, 32, 32, then the regression of theta."""
    widths = [torch.Size(in_shape).numel(), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, Regression(widths[-1], transform))


def convolutional(in_shape: tuple[int, ...], transform: Transform, channels: int = 20) -> nn.Sequential:
    """A.4's localisation of an ST-CNN: input / 2 - conv 5x5/20 - max 2 - conv 5x5/20 - FC 20 - theta.

    The input is summed over 2 x 2 pixels: most of a digit's image is empty, and the mean, four times as small, learns
    more slowly.  ReLU comes after the pool: the same function on a quarter of the map.
    """
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
