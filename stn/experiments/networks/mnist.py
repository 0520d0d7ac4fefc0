"""The MNIST classifiers of A.4 and A.1, with and without spatial transformers, with stated widths or for a budget."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stn.experiments.networks.sizing import sized
from stn.localisation import num_features
from stn.transformer import SpatialTransformer
from stn.transforms import Transform

REVISION = 1  # raise it when a change alters what is computed
Shape = tuple[int, ...]
Classifier = Callable[[Shape, int, int], nn.Module]  # (input shape, width, number of classes)
Localisation = Callable[[Shape, Transform], nn.Module]
UNITS, FILTERS = 256, 64  # of a hidden layer of the FCN, of a convolution of the CNN; the largest stated


def fcn(in_shape: Shape, width: int, classes: int) -> nn.Sequential:
    """The FCN of A.4: two hidden layers of `width` units, then the classifier."""
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
    """An unpadded convolution with few input channels and stride 1, whose gradient in the input is cheap.

    When that gradient is needed, after a spatial transformer, the convolution is one matrix product over all windows.
    PyTorch's gradient of a one-channel input takes longer than the rest of the ST-CNN's step on a CPU.
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
    """The CNN of A.4: conv 9x9 - max 2 - conv 7x7 - max 2 - classifier, `width` filters each, stride 1, no padding.

    The pools keep a last odd row (ceil mode): without it, nothing is left of the 21 x 21 map of RTS.  ReLU comes after
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


WIDTHS: dict[Classifier, int] = {fcn: UNITS, cnn: FILTERS}


class Parallel(nn.ModuleList):
    """Parallel spatial transformers (A.1): each sees and warps all of u, and their outputs are concatenated."""

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return torch.cat([transformer(u) for transformer in self], dim=1)


class StClassifier(nn.Module):
    """A transformer, average pooling by `pool`, then a classifier that sees V alone."""

    def __init__(self, transformer: nn.Module, pool: int, classifier: nn.Module):
        super().__init__()
        self.transformer = transformer
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()
        self.classifier = classifier

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.classifier(self.pool(self.transformer(u)))


def pool_of(in_shape: Shape) -> tuple[int, Shape]:
    """The side of A.4's average pool after the transformer, 2 if the canvas is larger than a digit (RTS, TC), else 1;
    and the classifier's input shape."""
    pool = 2 if in_shape[-1] > 28 else 1
    return pool, (in_shape[0], *(side // pool for side in in_shape[1:]))


def _check_shape(in_shape: Shape, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise ValueError on images of another shape than the network was built for, before a layer fails on them."""
    if (given := tuple(inputs[0].shape[1:])) != in_shape:
        raise ValueError(
            f"the network was built for images of {' x '.join(map(str, in_shape))} (channels, height, width), got "
            f"{' x '.join(map(str, given))}: resize the images, or build the network for this shape"
        )


def build(
    in_shape: Shape,
    classes: int,
    budget: int | None,
    classifier: Classifier,
    localisation: Localisation | None = None,
    transform: Transform | None = None,
    transformers: int = 1,
    pooled: bool = False,
    kernel: str = "bilinear",
    width: int | None = None,
) -> nn.Module:
    """A network of Table 1 or 4 whose classifier has `width` units or filters per layer.

    If `width` is None, it is the largest for `budget` trainable parameters, localisation networks included.  If both
    are None, it is the width that the paper states (`WIDTHS`).

    With a localisation, `transformers` parallel spatial transformers come before the classifier; their output is
    averaged by 2 if the canvas is larger than a digit (RTS, TC; A.4).  Without one, the network is the plain
    classifier, which sees the whole canvas.  With `pooled` it is an ST network without its transformer: the same pool,
    then the classifier.

    Raises ValueError on a localisation without a transform or with `pooled`, on a transformer without a localisation,
    on a budget that is too small, and on a width that is not a positive whole number.
    """
    in_shape = tuple(in_shape)
    if localisation is not None and transform is None:
        raise ValueError("model.transform is missing: a localisation network needs one to predict")
    if localisation is not None and pooled:
        raise ValueError("model.pooled=true is for a classifier without a transformer: A.4 pools after one anyway")
    if transformers < 1:
        raise ValueError(f"model.transformers={transformers} has to be 1 or more")
    if localisation is None and (transform is not None or transformers != 1):
        raise ValueError(
            "model.localisation is missing: a spatial transformer needs one; without a transformer set "
            "model.transform=null and model.transformers=1"
        )
    if width is not None and (not isinstance(width, int) or isinstance(width, bool) or width < 1):
        raise ValueError(f"model.width={width!r} has to be a whole number, 1 or more, or null")
    pool, (channels, *sides) = pool_of(in_shape)

    def plain(width: int) -> nn.Module:
        if not pooled:
            return classifier(in_shape, width, classes)
        seen = (channels, *sides)
        return nn.Sequential(OrderedDict(pool=nn.AvgPool2d(pool), classifier=classifier(seen, width, classes)))

    def whole(width: int) -> nn.Module:
        if localisation is None or transform is None:
            return plain(width)
        some = [
            SpatialTransformer(localisation(in_shape, transform), transform, None, kernel) for _ in range(transformers)
        ]
        seen = (transformers * channels, *sides)
        return StClassifier(some[0] if transformers == 1 else Parallel(some), pool, classifier(seen, width, classes))

    if width is None and budget is None and classifier not in WIDTHS:
        raise ValueError(
            f"{classifier.__name__} has no stated width: set model.width or budget, or add it to WIDTHS in {__file__}"
        )
    network = whole(width) if width is not None else sized(whole, WIDTHS.get(classifier, 0), budget)
    network.register_forward_pre_hook(partial(_check_shape, in_shape))
    return network
