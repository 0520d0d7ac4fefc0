"""The classifiers of A.3: A.4's CNN on a volume's projection, with and without a 3D spatial transformer."""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from stn.experiments.networks.mnist import FILTERS, Localisation, Shape, cnn
from stn.experiments.networks.sizing import sized
from stn.localisation import Regression, num_features
from stn.transformer import SpatialTransformer
from stn.transforms import Transform

REVISION = 1  # raise it when a change alters what is computed


class ScaledPool3d(nn.AvgPool3d):
    """`scale` times the mean over k x k x k voxels: ONNX's average pool has no `divisor_override`."""

    def __init__(self, kernel_size: int, scale: float):
        super().__init__(kernel_size)
        self.scale = scale

    def forward(self, u: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d2 h2 w2"]:
        return self.scale * super().forward(u)


def convolutional(in_shape: Shape, transform: Transform, channels: int = 20, downsample: int = 4) -> nn.Sequential:
    """A.4's localisation network in three dimensions: volume / downsample - twice (conv 5^3 - max 2) - FC - theta.

    Convolutions and FC have `channels` outputs each.  The convolutions are padded, since the pose depends on the
    positions of a digit's parts up to the volume's edge.  Each input is the sum of downsample^3 voxels, divided by
    `downsample`: nearly all of a volume is empty, and with means the network learns a digit's position more slowly
    (docs/3d.md).  Raises ValueError on a volume with sides of fewer than `downsample` voxels.
    """
    if min(in_shape[1:]) < downsample:
        raise ValueError(
            f"data.size_px={min(in_shape[1:])} is too small for a localisation network that downsamples it by "
            f"{downsample}: choose {downsample} or more"
        )
    features = nn.Sequential(
        ScaledPool3d(downsample, float(downsample**2)),
        nn.Conv3d(in_shape[0], channels, 5, padding=2),
        nn.MaxPool3d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv3d(channels, channels, 5, padding=2),
        nn.MaxPool3d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Flatten(),
    )
    return nn.Sequential(
        features, nn.Linear(num_features(features, in_shape), channels), nn.ReLU(), Regression(channels, transform)
    )


class Projection(nn.Module):
    """Flattens the volume's depth (A.3): the sum over z, divided by `unit`, the thickness that becomes 1."""

    def __init__(self, unit: float = 28.0):
        super().__init__()
        self.unit = unit

    def forward(self, u: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c h w"]:
        return u.sum(2) / self.unit


def cnn3d(in_shape: Shape, width: int, classes: int) -> nn.Sequential:
    """A CNN of the volume itself: conv 5^3, stride 2 - conv 5^3 - max 2 - classifier, `width` filters each, padded.

    Its input is the means of 2^3 voxels, the resolution of a transformer's output with half the volume's side.
    """
    features = nn.Sequential(
        nn.AvgPool3d(2),
        nn.Conv3d(in_shape[0], width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv3d(width, width, 5, padding=2),
        nn.MaxPool3d(2, ceil_mode=True),
        nn.ReLU(),
        nn.Flatten(),
    )
    return nn.Sequential(features, nn.Linear(num_features(features, in_shape), classes))


def build(
    in_shape: Shape,
    classes: int,
    budget: int | None,
    localisation: Localisation | None = None,
    transform: Transform | None = None,
    out_px: int | None = None,
    kernel: str = "bilinear",
    projected: bool = True,
) -> nn.Module:
    """A projection, then A.4's CNN, with the stated width or for a budget; or, without `projected`, a 3D CNN.

    With a localisation, a 3D spatial transformer with an output of out_px^3 comes first.  Half of the input's side is a
    good `out_px`: at the identity each output voxel is exactly the mean of 2^3 input voxels (its centre is their common
    corner), so nothing aliases, and a window zoomed in by 2 has the input's resolution.
    """
    if not projected:
        if localisation is not None:
            raise ValueError("model.projected=false is a 3D CNN of the volume: set model.localisation=null")
        return sized(lambda width: cnn3d(in_shape, width, classes), FILTERS, budget)
    if localisation is None:

        def plain(width: int) -> nn.Module:
            return nn.Sequential(Projection(), cnn((in_shape[0], *in_shape[2:]), width, classes))

        return sized(plain, FILTERS, budget)
    if transform is None:
        raise ValueError("model.transform is missing: a localisation network needs one to predict")
    size = in_shape[1:] if out_px is None else (out_px,) * 3

    def whole(width: int) -> nn.Module:
        transformer = SpatialTransformer(localisation(in_shape, transform), transform, size, kernel)
        parts = {"transformer": transformer, "projection": Projection()}
        parts["classifier"] = cnn((in_shape[0], *size[1:]), width, classes)
        return nn.Sequential(OrderedDict(parts))

    return sized(whole, FILTERS, budget)
