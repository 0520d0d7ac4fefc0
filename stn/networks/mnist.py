"""The classifiers of A.4 and A.1 for MNIST, with and without spatial transformers, sized by a parameter budget."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stn.localisation import num_features
from stn.transformer import SpatialTransformer
from stn.transforms import Transform

Shape = tuple[int, ...]
Localisation = Callable[[Shape, Transform], nn.Module]


def fcn(in_shape: Shape, width: int, classes: int) -> nn.Sequential:
    """A.4's FCN: two hidden layers of `width` units, then the classifier."""
    n_in = torch.Size(in_shape).numel()
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(n_in, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


class SlimConv2d(nn.Conv2d):
    """An unpadded convolution of few input channels, stride 1, whose gradient in the input is cheap.

    Where that gradient is asked for, behind a spatial transformer, the convolution is one matrix product over all
    windows: PyTorch's own gradient of a one-channel input takes longer than the rest of the ST-CNN's step on a CPU.
    """

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h2 w2"]:
        if not u.requires_grad:
            return super().forward(u)
        h, w = self.kernel_size
        windows = u.unfold(2, h, 1).unfold(3, w, 1).permute(0, 2, 3, 1, 4, 5)
        b, rows, columns = windows.shape[:3]
        v = F.linear(windows.reshape(b * rows * columns, -1), self.weight.flatten(1), self.bias)
        return v.view(b, rows, columns, -1).permute(0, 3, 1, 2)


def cnn(in_shape: Shape, width: int, classes: int) -> nn.Sequential:
    """A.4's CNN: conv 9x9 - max 2 - conv 7x7 - max 2 - classifier, `width` filters each, stride 1, no padding.

    The pools keep a last odd row (ceil mode), without which the 21 x 21 map of RTS would end empty.  ReLU stands behind
    the pool: the same function on a quarter of the map.
    """
    features = nn.Sequential(
        SlimConv2d(in_shape[0], width, 9),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(width, width, 7),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Flatten(),
    )
    return nn.Sequential(features, nn.Linear(num_features(features, in_shape), classes))


class Parallel(nn.ModuleList):
    """Spatial transformers side by side (A.1): each sees and warps all of u, their outputs are concatenated."""

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return torch.cat([transformer(u) for transformer in self], dim=1)


class StClassifier(nn.Module):
    """What transforms the input, its output averaged by `pool`, then a classifier that sees V alone."""

    def __init__(self, transformer: nn.Module, pool: int, classifier: nn.Module):
        super().__init__()
        self.transformer = transformer
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()
        self.classifier = classifier

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.classifier(self.pool(self.transformer(u)))


def pool_of(in_shape: Shape) -> tuple[int, Shape]:
    """The side of A.4's average pool behind the transformer, 2 where the canvas is larger than a digit (RTS, TC), and
    the shape that is left for the classifier."""
    pool = 2 if in_shape[-1] > 28 else 1
    return pool, (in_shape[0], *(side // pool for side in in_shape[1:]))


def _check_shape(in_shape: Shape, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise ValueError on images of another shape than a network was built for, before a layer trips over them."""
    if (given := tuple(inputs[0].shape[1:])) != in_shape:
        raise ValueError(
            f"the network was built for images of {' x '.join(map(str, in_shape))} (channels, height, width), got "
            f"{' x '.join(map(str, given))}: give every image as many channels and pixels, or build it for these"
        )


def num_params(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def solve_width(build: Callable[[int], nn.Module], budget: int) -> int:
    """The largest width whose network has at most `budget` trainable parameters, which have to grow with the width."""

    def cost(width: int) -> int:
        with torch.device("meta"):
            return num_params(build(width))

    if cost(1) > budget:
        raise ValueError(
            f"budget={budget} is too small: with a width of 1 this network has {cost(1)} parameters already"
        )
    low, high = 1, 2
    while cost(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def build(
    in_shape: Shape,
    classes: int,
    budget: int,
    classifier: Callable[[Shape, int, int], nn.Module],
    localisation: Localisation | None = None,
    transform: Transform | None = None,
    kernel: str = "bilinear",
    num_transformers: int = 1,
) -> nn.Module:
    """A network of Table 1 or 4 with as much width as the budget allows, the localisation networks counted in.

    Without a localisation it is the plain classifier.  With one, `num_transformers` spatial transformers stand before
    it in parallel, whose output is averaged by 2 where the canvas is larger than a digit (RTS, TC; A.4).
    """
    in_shape = tuple(in_shape)
    if localisation is not None and transform is None:
        raise ValueError("a localisation needs a transform to predict: choose one of conf/transform")
    if num_transformers < 1:
        raise ValueError(f"num_transformers={num_transformers} has to be 1 or more")
    pool, (channels, *sides) = pool_of(in_shape)
    seen = (num_transformers * channels, *sides)

    def whole(width: int) -> nn.Module:
        if localisation is None or transform is None:
            return classifier(in_shape, width, classes)
        transformers = [
            SpatialTransformer(localisation(in_shape, transform), transform, kernel=kernel)
            for _ in range(num_transformers)
        ]
        transformer = transformers[0] if num_transformers == 1 else Parallel(transformers)
        return StClassifier(transformer, pool, classifier(seen, width, classes))

    network = whole(solve_width(whole, budget))
    network.register_forward_pre_hook(partial(_check_shape, in_shape))
    return network


def pooled(in_shape: Shape, classes: int, budget: int, classifier: Callable[[Shape, int, int], nn.Module]) -> nn.Module:
    """What an ST network of the same budget is without its transformer: the pool of A.4, then the classifier.

    `build` without a localisation lets the classifier see the whole canvas instead, on RTS and TC at twice the density.
    """
    pool, seen = pool_of(tuple(in_shape))

    def whole(width: int) -> nn.Module:
        return nn.Sequential(OrderedDict(pool=nn.AvgPool2d(pool), classifier=classifier(seen, width, classes)))

    return whole(solve_width(whole, budget))
