"""The localiser of A.2: an attention transformer that cuts a digit-sized crop out of an image."""

import torch
from torch import nn

from stn.datasets.distortions import DIGIT_PX
from stn.localisation import Regression, num_features
from stn.networks.mnist import num_params
from stn.transformer import SpatialTransformer
from stn.transforms import Attention


def build(in_shape: tuple[int, ...], classes: int, budget: int, stride: int, start: float) -> SpatialTransformer:
    """u (B, 1, 84, 84) -> V (B, 1, 28, 28); f_loc is conv 9x9/8 of `stride` - max 2 - FC 8 - FC 8 - (s, t_x, t_y).

    It starts in the middle of the image with a window of scale `start`.  The hidden layers have He's initialisation.
    Raises ValueError where it has more than `budget` trainable parameters.
    """
    features = nn.Sequential(nn.Conv2d(in_shape[0], 8, 9, stride), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    hidden = [nn.Linear(num_features(features, in_shape), 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
    for layer in (features[0], hidden[0], hidden[2]):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    regression = Regression(8, Attention(), start=(start, 0.0, 0.0))
    network = SpatialTransformer(nn.Sequential(features, *hidden, regression), Attention(), (DIGIT_PX, DIGIT_PX))
    if num_params(network) > budget:
        raise ValueError(
            f"budget={budget} is too small: with model.stride={stride} this network has {num_params(network)} parameters"
        )
    return network
