"""Other uses of a transformer (Sect. 3.4, 5) as networks: theta fed forward, series, output size, recurrence.

Each consists of the parts of Table 1's networks and has their widths; docs/uses.md shows each in a few lines.
"""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.experiments.networks.mnist import FILTERS, UNITS, Shape, StClassifier, cnn, fcn, pool_of
from stn.experiments.networks.sizing import sized
from stn.localisation import convolutional, fully_connected, num_features
from stn.transformer import SpatialTransformer
from stn.transforms import Transform

REVISION = 1  # raise it when a change alters what is computed


class ThetaFedForward(nn.Module):
    """logits = W [features(pool(V)), theta] + b: the classifier also sees the pose of its window."""

    def __init__(self, transformer: SpatialTransformer, pool: int, features: nn.Module, n_features: int, classes: int):
        super().__init__()
        self.transformer = transformer
        self.pool = nn.AvgPool2d(pool)
        self.features = features
        self.classifier = nn.Linear(n_features + transformer.transform.num_params, classes)

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        v, theta = self.transformer(u, return_theta=True)
        return self.classifier(torch.cat([self.features(self.pool(v)), theta], dim=1))


class Recurrent(nn.Module):
    """One transformer applied `times` times, each time to its last output: theta_{i+1} = f_loc(V_i), V_0 = U.

    V_{i+1} = sample(U, T_1(T_2(... T_{i+1}(G)))): the maps are composed, and U itself is sampled again.  The other
    interpretation, V_{i+1} = sample(V_i, T_{i+1}(G)), is `st(st(u))`; it blurs at every step, and content outside one
    window is lost to all later ones.
    """

    def __init__(self, transformer: SpatialTransformer, times: int):
        super().__init__()
        if times < 1:
            raise ValueError(f"model.times={times} has to be 1 or more")
        compose = getattr(transformer.transform, "compose", None)
        if compose is None:
            raise ValueError(
                f"a recurrent transformer composes its maps, but {type(transformer.transform).__name__} has no "
                "compose: choose model.transform=affine, attention or projective"
            )
        self.transformer = transformer
        self.compose = compose
        self.times = times

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        theta = self.transformer.localisation(u)
        v = self.transformer.warp(u, theta)
        for _ in range(self.times - 1):
            theta = self.compose(theta, self.transformer.localisation(v))
            v = self.transformer.warp(u, theta)
        return v


def theta_fed_forward(in_shape: Shape, classes: int, budget: int | None, transform: Transform) -> nn.Module:
    """ST-CNN whose last layer sees theta and the features of V."""
    pool, seen = pool_of(in_shape)

    def whole(width: int) -> nn.Module:
        transformer = SpatialTransformer(convolutional(in_shape, transform), transform)
        features = cnn(seen, width, classes)[0]
        return ThetaFedForward(transformer, pool, features, num_features(features, seen), classes)

    return sized(whole, FILTERS, budget)


def series(in_shape: Shape, classes: int, budget: int | None, transform: Transform) -> nn.Module:
    """ST-CNN with a second transformer, on the feature maps before the second convolution.

    Its localisation network is that of ST-CNN Multi (A.5): two layers of 32.
    """
    pool, seen = pool_of(in_shape)

    def whole(width: int) -> nn.Module:
        features, classifier = cnn(seen, width, classes)
        layers = list(features.children())
        first, rest = nn.Sequential(*layers[:3]), nn.Sequential(*layers[3:])  # each conv - max 2 - ReLU
        maps = tuple(first(torch.zeros(1, *seen)).shape[1:])
        return nn.Sequential(
            OrderedDict(
                transformer_input=SpatialTransformer(convolutional(in_shape, transform), transform),
                pool=nn.AvgPool2d(pool),
                first=first,
                transformer_maps=SpatialTransformer(fully_connected(maps, transform, (32, 32)), transform),
                rest=rest,
                classifier=classifier,
            )
        )

    return sized(whole, FILTERS, budget)


def resized(
    in_shape: Shape, classes: int, budget: int | None, transform: Transform, out_px: int, pool: int
) -> nn.Module:
    """ST-FCN whose classifier sees out_px x out_px pixels, each the mean of pool x pool sampled points.

    With pool = 1 they are sampled directly, which aliases if a step of the grid is longer than the two pixels of U that
    the kernel spans (Sect. 3.4).  With pool = in_px / out_px, points are sampled at U's own density, then averaged.
    """
    if out_px < 1 or pool < 1:
        raise ValueError(f"model.out_px={out_px} and model.pool={pool} have to be 1 or more")

    def whole(width: int) -> nn.Module:
        size = (out_px * pool, out_px * pool)
        transformer = SpatialTransformer(fully_connected(in_shape, transform), transform, size)
        return StClassifier(transformer, pool, fcn((in_shape[0], out_px, out_px), width, classes))

    return sized(whole, UNITS, budget)


def recurrent(in_shape: Shape, classes: int, budget: int | None, transform: Transform, times: int) -> nn.Module:
    """ST-FCN whose localisation network is applied `times` times (`Recurrent`)."""
    pool, seen = pool_of(in_shape)

    def whole(width: int) -> nn.Module:
        transformer = SpatialTransformer(fully_connected(in_shape, transform), transform)
        return StClassifier(Recurrent(transformer, times), pool, fcn(seen, width, classes))

    return sized(whole, UNITS, budget)
