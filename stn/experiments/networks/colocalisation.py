"""The network of A.2: an attention transformer that takes a digit-sized crop from an image."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.experiments.datasets import DIGIT_PX
from stn.experiments.networks.sizing import num_params
from stn.localisation import Regression, num_features
from stn.transformer import SpatialTransformer
from stn.transforms import Attention

REVISION = 1  # raise it when a change alters what is computed


class WithinImage(Regression):
    """Regression of (s, t_x, t_y) with the window inside the image: s = sigmoid(a), t = (1 - s) tanh(b).

    a and b are linear in the features.  a is scaled by `rate`, so that a window learns the position of its digit before
    its size.  Without these limits all windows leave the image or outgrow it first.
    """

    rate: Tensor

    def __init__(self, in_features: int, start: float, rate: float):
        super().__init__(in_features, Attention(), start=(math.log(start / (1 - start)), 0.0, 0.0))
        self.register_buffer("rate", torch.tensor([rate, 1.0, 1.0]), persistent=False)

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b 3"]:
        free = self.identity + self.rate * (super().forward(x) - self.identity)
        s = free[:, :1].sigmoid()
        return torch.cat([s, (1 - s) * free[:, 1:].tanh()], dim=1)


def build(
    in_shape: tuple[int, ...], classes: int, budget: int | None, stride: int, start: float, scale_rate: float
) -> SpatialTransformer:
    """u (B, 1, 84, 84) -> V (B, 1, 28, 28); f_loc is conv 9x9/8 of `stride` - max 2 - FC 8 - FC 8 - (s, t_x, t_y).

    The window starts at the centre of the image with scale `start`, between 0 and 1.  The hidden layers use He's
    initialisation, and the last is standardised over the batch.  Without that, all windows move together before any has
    learnt the position of its digit.  Raises ValueError for another `start`, and if the network has more than `budget`
    trainable parameters.
    """
    if not 0 < start < 1:
        raise ValueError(
            f"model.start={start} is not the scale of a window inside the image: choose one between 0 and 1"
        )
    convolution = nn.Conv2d(in_shape[0], 8, 9, stride)
    features = nn.Sequential(convolution, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    first, second = nn.Linear(num_features(features, in_shape), 8), nn.Linear(8, 8)
    for layer in (convolution, first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layer.bias.data.zero_()  # type: ignore[union-attr]
    hidden = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.BatchNorm1d(8, affine=False))
    localisation = nn.Sequential(features, hidden, WithinImage(8, start, scale_rate))
    network = SpatialTransformer(localisation, Attention(), (DIGIT_PX, DIGIT_PX))
    if budget is not None and num_params(network) > budget:
        raise ValueError(
            f"budget={budget} is too small: with model.stride={stride} the network has {num_params(network)} parameters"
        )
    return network
