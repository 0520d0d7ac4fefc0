"""The localiser of A.2: an attention transformer that cuts a digit-sized crop out of an image."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.datasets.distortions import DIGIT_PX
from stn.localisation import Regression, num_features
from stn.networks.mnist import num_params
from stn.transformer import SpatialTransformer
from stn.transforms import Attention


class SlowScale(Regression):
    """The regression of (s, t_x, t_y), whose s moves `rate` times as far as its weights: it learns where, then how big.

    While the windows are not on the digits, the loss falls fastest where all of them shrink to a point or grow.
    """

    rate: Tensor

    def __init__(self, in_features: int, start: float, rate: float):
        super().__init__(in_features, Attention(), start=(start, 0.0, 0.0))
        self.register_buffer("rate", torch.tensor([rate, 1.0, 1.0]), persistent=False)

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b 3"]:
        return self.identity + self.rate * (super().forward(x) - self.identity)


def build(
    in_shape: tuple[int, ...], classes: int, budget: int, stride: int, start: float, scale_rate: float
) -> SpatialTransformer:
    """u (B, 1, 84, 84) -> V (B, 1, 28, 28); f_loc is conv 9x9/8 of `stride` - max 2 - FC 8 - FC 8 - (s, t_x, t_y).

    It starts in the middle of the image with a window of scale `start`.  The hidden layers have He's initialisation,
    and the last is standardised over the batch: without it, all windows leave the image together before one of them has
    learnt where its digit is.  Raises ValueError where it has more than `budget` trainable parameters.
    """
    convolution = nn.Conv2d(in_shape[0], 8, 9, stride)
    features = nn.Sequential(convolution, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    first, second = nn.Linear(num_features(features, in_shape), 8), nn.Linear(8, 8)
    for layer in (convolution, first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layer.bias.data.zero_()  # type: ignore[union-attr]
    hidden = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.BatchNorm1d(8, affine=False))
    localisation = nn.Sequential(features, hidden, SlowScale(8, start, scale_rate))
    network = SpatialTransformer(localisation, Attention(), (DIGIT_PX, DIGIT_PX))
    if num_params(network) > budget:
        raise ValueError(
            f"budget={budget} is too small: with model.stride={stride} it has {num_params(network)} parameters"
        )
    return network
