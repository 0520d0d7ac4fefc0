"""The classifiers of A.6 for birds: one pre-trained CNN, or N parallel spatial transformers with a CNN each."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stn.experiments.networks import pretrained
from stn.experiments.networks.surgery import out_shape
from stn.localisation import Regression
from stn.transformer import SpatialTransformer
from stn.transforms import Translation

REVISION = 1  # raise it when a change alters what is computed
SCALE = 0.5  # of every window
TILES = {  # the first windows (t_x, t_y): side by side they cover what they can of the image
    1: ((0.0, 0.0),),
    2: ((-0.5, 0.0), (0.5, 0.0)),
    4: ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),
}


def resized(u: Float[Tensor, "b c h w"], side_px: int) -> Float[Tensor, "b c s s"]:
    """A copy of side_px x side_px: the average over the pixels that fall together, or u itself where it fits."""
    return u if u.shape[-1] == side_px else F.interpolate(u, size=(side_px, side_px), mode="area")


class Features(nn.Sequential):
    """A backbone, averaged over its map: images in [0, 1] to one vector each."""

    def __init__(self, backbone: nn.Sequential):
        super().__init__(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Localisation(nn.Module):
    """Backbone of its own on a copy of the image - conv 1x1/128 - FC 128 - theta of all N transformers (A.6)."""

    def __init__(self, backbone: nn.Sequential, copy_px: int, start: tuple[tuple[float, float], ...], width: int = 128):
        super().__init__()
        self.copy_px = copy_px
        c, h, w = out_shape(backbone, copy_px)
        self.features = nn.Sequential(
            backbone, nn.Conv2d(c, width, 1), nn.ReLU(), nn.Flatten(), nn.Linear(width * h * w, width), nn.ReLU()
        )
        self.regressions = nn.ModuleList(Regression(width, Translation(SCALE), tile) for tile in start)

    def forward(self, u: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n 2"]:
        x = self.features(resized(u, self.copy_px))
        return torch.stack([regression(x) for regression in self.regressions], dim=1)


class Windows(SpatialTransformer):
    """N windows of half the image's side, V_i = sample(U, T_theta_i(G)); one localisation network places them all."""

    def __init__(self, localisation: Localisation, sample_px: int):
        super().__init__(localisation, Translation(SCALE), (sample_px, sample_px))

    def forward(self, u: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b 3 s s"]]:  # type: ignore[override]
        return [self.warp(u, theta) for theta in self.localisation(u).unbind(1)]


class StCnn(nn.Module):
    """Windows on the image, each seen by a CNN of its own; the descriptions side by side are classified.

    The classifier sees the windows alone.
    """

    def __init__(self, transformer: Windows, streams: list[Features], head: nn.Module):
        super().__init__()
        self.transformer = transformer
        self.streams = nn.ModuleList(streams)
        self.head = head

    def forward(self, u: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        parts = self.transformer(u)
        return self.head(torch.cat([cnn(v) for cnn, v in zip(self.streams, parts, strict=True)], dim=1))

    def windows(self, u: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n 4"]:
        """The windows (x0, y0, x1, y1) in the image's [-1, 1]."""
        centre = self.transformer.localisation(u)
        return torch.cat([centre - SCALE, centre + SCALE], dim=2)


def build(
    in_shape: tuple[int, ...],
    classes: int,
    transformers: int,
    backbone: str,
    weights: str,
    sample_px: int = 224,
    dropout: float = 0.7,
    frozen: str | None = None,
    last: str | None = None,
) -> nn.Module:
    """The CNN of Table 3 (`transformers` 0) or its N x ST-CNN (1, 2 or 4), every backbone from the same weights.

    `backbone`, `weights`, `frozen` and `last` are those of `stn.experiments.networks.pretrained`; the samples of the
    transformers and the copy that the localisation network sees have a side of sample_px.
    """
    if transformers and transformers not in TILES:
        raise ValueError(f"model.transformers={transformers}: choose 0 (the CNN), {', '.join(map(str, TILES))}")
    state = pretrained.load_weights(backbone, weights)

    def fresh() -> nn.Sequential:
        return pretrained.build(backbone, state, frozen, last)

    def head(streams: int) -> nn.Sequential:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(streams * width, classes))

    width = out_shape(fresh(), sample_px)[0]
    if not transformers:
        return nn.Sequential(Features(fresh()), head(1))
    windows = Windows(Localisation(fresh(), sample_px, TILES[transformers]), sample_px)
    return StCnn(windows, [Features(fresh()) for _ in range(transformers)], head(transformers))
