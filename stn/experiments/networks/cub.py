"""The bird classifiers of A.6: one pre-trained CNN, or N parallel spatial transformers with a CNN each."""

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
WINDOWS, FIRST = ("learnt", "fixed", "random", "parts"), ("tiles", "centre")
SCALE = 0.5  # of every window
TILES = {  # windows (t_x, t_y) side by side, which cover as much of the image as they can
    1: ((0.0, 0.0),),
    2: ((-0.5, 0.0), (0.5, 0.0)),
    4: ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),
}


def resized(u: Float[Tensor, "b c h w"], side_px: int) -> Float[Tensor, "b c s s"]:
    """u reduced to side_px x side_px by averaging pixels; u itself if it has that size."""
    return u if u.shape[-1] == side_px else F.interpolate(u, size=(side_px, side_px), mode="area")


class Features(nn.Sequential):
    """A backbone with global average pooling: maps images in [0, 1] to one vector each."""

    def __init__(self, backbone: nn.Sequential):
        super().__init__(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Localisation(nn.Module):
    """Its own backbone on a reduced image - conv 1x1/128 - FC 128 - theta of all N transformers (A.6).

    With `norm` a batch norm comes before theta's layer.  Otherwise that layer's inputs are all positive, so a step that
    moves the window of one image moves those of all, most of all with Adam's equal step sizes: the windows leave the
    image before they follow anything in it.
    """

    def __init__(
        self,
        backbone: nn.Sequential,
        copy_px: int,
        start: tuple[tuple[float, float], ...],
        norm: bool = False,
        width: int = 128,
    ):
        super().__init__()
        self.copy_px = copy_px
        c, h, w = out_shape(backbone, copy_px)
        self.features = nn.Sequential(
            backbone, nn.Conv2d(c, width, 1), nn.ReLU(), nn.Flatten(), nn.Linear(width * h * w, width), nn.ReLU()
        )
        if norm:
            self.features.append(nn.BatchNorm1d(width))
        self.regressions = nn.ModuleList(Regression(width, Translation(SCALE), tile) for tile in start)

    def forward(self, u: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n 2"]:
        x = self.features(resized(u, self.copy_px))
        return torch.stack([regression(x) for regression in self.regressions], dim=1)


class Windows(SpatialTransformer):
    """N windows of half the image's side, V_i = sample(U, T_theta_i(G)), with U the first three channels of the input.

    One localisation network places them (`placed` learnt).  The other choices are controls, which have that network but
    do not use it.  fixed: the windows stay on the tiles.  random: they lie uniformly at random in the image, drawn anew
    in training and the same in every test.  parts: window i is centred on part i, whose (x, y) are the constant
    channels 3 + 2i and 4 + 2i.
    """

    tiles: Tensor

    def __init__(self, localisation: Localisation, sample_px: int, placed: str):
        super().__init__(localisation, Translation(SCALE), (sample_px, sample_px))
        self.placed = placed
        self.register_buffer("tiles", torch.tensor(TILES[len(localisation.regressions)]), persistent=False)

    def theta(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n 2"]:
        """The centres of the N windows."""
        if self.placed == "learnt":
            return self.localisation(u[:, :3])
        if self.placed == "fixed":
            return self.tiles.expand(len(u), -1, -1)
        if self.placed == "parts":
            return u[:, 3:, 0, 0].unflatten(1, self.tiles.shape)
        generator = None if self.training else torch.Generator(u.device).manual_seed(0)
        uniform = torch.rand(len(u), *self.tiles.shape, generator=generator, device=u.device)
        return (1 - SCALE) * (2 * uniform - 1)

    def forward(self, u: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b 3 s s"]]:  # type: ignore[override]
        image = u[:, :3]
        return [self.warp(image, theta) for theta in self.theta(u).unbind(1)]


class StCnn(nn.Module):
    """Windows of the image, each with its own CNN; the classifier sees their concatenated features.

    The classifier sees nothing but the windows.
    """

    def __init__(self, transformer: Windows, streams: list[Features], head: nn.Module):
        super().__init__()
        self.transformer = transformer
        self.streams = nn.ModuleList(streams)
        self.head = head

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        parts = self.transformer(u)
        return self.head(torch.cat([cnn(v) for cnn, v in zip(self.streams, parts, strict=True)], dim=1))

    def windows(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n 4"]:
        """The windows (x0, y0, x1, y1) in the image's [-1, 1]."""
        centre = self.transformer.theta(u)
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
    windows: str = "learnt",
    first: str = "tiles",
    localisation_norm: bool = False,
) -> nn.Module:
    """The CNN of Table 3 (`transformers` 0) or its N x ST-CNN (1, 2 or 4), every backbone from the same weights.

    `backbone`, `weights`, `frozen` and `last` are those of `stn.experiments.networks.pretrained`.  The samples of the
    transformers and the reduced image for the localisation network have sides of sample_px.  `windows` says what places
    the windows (`Windows`); the parameters are the same for each.  `first` is where learnt windows start: as tiles, or
    all at the centre.
    """
    if transformers and transformers not in TILES:
        raise ValueError(f"model.transformers={transformers}: choose one of 0 (the CNN), {', '.join(map(str, TILES))}")
    if windows not in WINDOWS or (windows != "learnt" and not transformers):
        raise ValueError(
            f"model.windows={windows!r}: choose learnt, or with transformers one of {', '.join(WINDOWS[1:])}"
        )
    if first not in FIRST:
        raise ValueError(f"model.first={first!r}: choose one of {', '.join(FIRST)}")
    points = 2 * transformers if windows == "parts" else 0
    if in_shape[0] != 3 + points:
        raise ValueError(
            f"model.windows={windows} with model.transformers={transformers} needs images of {3 + points} channels, "
            f"not {in_shape[0]}: data.parts=true adds the 4 of head and body to the colours"
        )
    state = pretrained.load_weights(backbone, weights)

    def fresh() -> nn.Sequential:
        return pretrained.build(backbone, state, frozen, last)

    def head(streams: int) -> nn.Sequential:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(streams * width, classes))

    width = out_shape(fresh(), sample_px)[0]
    if not transformers:
        return nn.Sequential(Features(fresh()), head(1))
    start = TILES[transformers] if first == "tiles" else ((0.0, 0.0),) * transformers
    localisation = Localisation(fresh(), sample_px, start, localisation_norm)
    return StCnn(
        Windows(localisation, sample_px, windows), [Features(fresh()) for _ in range(transformers)], head(transformers)
    )
