"""The house number networks of A.5: one CNN with a softmax per digit and no, one or four transformers."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.experiments.networks.sizing import num_params, solve_width
from stn.localisation import Regression, num_features
from stn.transformer import SpatialTransformer
from stn.transforms import Transform

REVISION = 1  # raise it when a change alters what is computed
Shape = tuple[int, int, int]
CHANNELS = (48, 64, 128, 160, 192, 192, 192, 192)  # of the convolutions, 5 x 5, padded by 2
POOLED = (1, 3, 5, 7)  # the convolutions that a max pool of 2 x 2 follows
AT = {"none": 0, "single": 1, "multi": 4}  # number of first convolutions with a transformer before them
UNITS = 3072  # of each of the three fully connected layers


class Standardise(nn.Module):
    """Subtracts each image's mean and divides by its standard deviation (Goodfellow et al. 2013 subtract the mean)."""

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        std, mean = torch.std_mean(u, dim=(1, 2, 3), keepdim=True)
        return (u - mean) / (std + 1e-2)


class Heads(nn.Linear):
    """One classifier per place of the sequence: (B, F) -> (B, places, classes)."""

    def __init__(self, in_features: int, places: int, classes: int):
        super().__init__(in_features, places * classes)
        self.shape = (places, classes)

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b l k"]:
        return super().forward(x).unflatten(1, self.shape)


def _scaled(n: int, width: float) -> int:
    """n x width, rounded to a multiple of 4."""
    return max(4, round(n * width / 4) * 4)


def convolutional(in_shape: Shape, transform: Transform, width: float) -> nn.Sequential:
    """The localisation network of ST-CNN Single (A.5): conv 5x5/32 - max 2 - conv 5x5/32 - FC 32 - FC 32 - theta."""
    n = _scaled(32, width)
    features = nn.Sequential(
        Standardise(),
        nn.Conv2d(in_shape[0], n, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(n, n, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
    )
    return nn.Sequential(
        *features, nn.Linear(num_features(features, in_shape), 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
        Regression(32, transform),
    )  # fmt: skip


def fully_connected(in_shape: Shape, transform: Transform) -> nn.Sequential:
    """The localisation network of ST-CNN Multi (A.5): FC 32 - FC 32 - theta, on the whole feature map."""
    first = [Standardise()] if in_shape[0] == 3 else []
    n_in = torch.Size(in_shape).numel()
    return nn.Sequential(
        *first, nn.Flatten(), nn.Linear(n_in, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), Regression(32, transform)
    )


def initialise(network: nn.Sequential) -> None:
    """He initialisation (2015), which keeps the variance of the activations constant over eleven layers of ReLU.

    After dropout that keeps a share q of the units, and divides them by q, a layer's weights are smaller by sqrt(q)
    (Hendrycks & Gimpel 2016): otherwise the variance doubles with each of ten layers, and the first loss is in the
    hundreds.

    The localisation networks keep PyTorch's smaller weights, which make theta's first steps some 30 times smaller.
    With He's, a single noisy step can throw a window out of the image.
    """
    q = 1.0
    for layer in network:
        if isinstance(layer, nn.Dropout):
            q = 1 - layer.p
        elif isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, Heads):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data *= q**0.5
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            q = 1.0


def build(
    in_shape: Shape,
    classes: int,
    places: int = 5,
    transformers: str = "none",
    transform: Transform | None = None,
    kernel: str = "bilinear",
    width: int | float = 1.0,
    dropout: int | float = 0.5,
    params_of: str | None = None,
) -> nn.Sequential:
    """The CNN of A.5 with `places` softmaxes of `classes`.

    `transformers` is "none", "single" (a spatial transformer before the first convolution) or "multi" (one before each
    of the first four).  `width` scales channels and units; 1 is the paper's.  With `params_of` the network is widened
    until it has about as many parameters, and no more, as the network with those transformers at `width`.  Dropout
    comes after every hidden layer except the first convolution.  ReLU comes after the pool: the same function on a
    quarter of the map.
    """
    for key, value in {"transformers": transformers, "params_of": params_of or "none"}.items():
        if value not in AT:
            raise ValueError(f"unknown model.{key}={value!r}: choose one of {', '.join(AT)}")
    if transformers != "none" and transform is None:
        raise ValueError("model.transform is missing: a localisation network needs one to predict")
    if in_shape[1] % 16 or in_shape[2] % 16:
        raise ValueError(f"data.size_px={in_shape[1]} has to be a multiple of 16: four pools halve it")
    if not width > 0 or not 0 <= dropout < 1:
        raise ValueError(f"model.width={width} has to be above 0, and model.dropout={dropout} from 0 to below 1")
    if params_of is not None:

        def as_wide(k: int) -> nn.Sequential:
            return build(in_shape, classes, places, transformers, transform, kernel, k / UNITS, dropout)

        with torch.device("meta"):
            other = build(in_shape, classes, places, params_of, transform, kernel, width, dropout)
        return as_wide(solve_width(as_wide, num_params(other)))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, h, w = in_shape
    for i, n_out in enumerate((_scaled(n, width) for n in CHANNELS), start=1):
        shape = (channels, h, w)
        if transform is not None and i <= AT[transformers]:
            whole = transformers == "single"
            localisation = convolutional(shape, transform, width) if whole else fully_connected(shape, transform)
            layers[f"st{i}"] = SpatialTransformer(localisation, transform, kernel=kernel)
        if i == 1:  # after the transformer, which samples 0 outside the image
            layers["standardise"] = Standardise()
        layers[f"conv{i}"] = nn.Conv2d(channels, n_out, 5, padding=2)
        if i in POOLED:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            h, w = h // 2, w // 2
        layers[f"relu{i}"] = nn.ReLU()
        if i > 1 and dropout:
            layers[f"dropout{i}"] = nn.Dropout(dropout)
        channels = n_out
    layers["flatten"] = nn.Flatten()
    features = channels * h * w
    units = _scaled(UNITS, width)
    for i in range(len(CHANNELS) + 1, len(CHANNELS) + 4):
        layers[f"fc{i}"], layers[f"relu{i}"] = nn.Linear(features, units), nn.ReLU()
        if dropout:
            layers[f"dropout{i}"] = nn.Dropout(dropout)
        features = units
    layers["heads"] = Heads(features, places, classes)
    network = nn.Sequential(layers)
    initialise(network)
    return network
