"""Prepares a backbone for training: removes its last layers, freezes its first ones."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

SMALLEST_PX = 32  # side of an image that every backbone can process


def stages(backbone: nn.Sequential) -> list[str]:
    """The names of the layers, and of the blocks in `_blocks`, in order."""
    return [name for name, _ in backbone.named_modules() if name and name.count(".") == name.startswith("_blocks")]


def _place(backbone: nn.Sequential, name: str) -> int:
    names = stages(backbone)
    if name not in names:
        raise ValueError(f"unknown layer {name!r} of the backbone: choose one of {', '.join(names)}")
    return names.index(name)


def cut(backbone: nn.Sequential, last: str) -> nn.Sequential:
    """The backbone up to the layer called `last`, followed by a batch norm `norm`.

    A block of EfficientNet ends in a linear map.  On its raw features, of norm 30 after averaging, the classifier's
    loss rises at the learning rates that the rest needs, and more so with several streams.
    """
    for name in reversed(stages(backbone)[_place(backbone, last) + 1 :]):
        parent, _, child = name.rpartition(".")
        delattr(backbone.get_submodule(parent), child)
    backbone.add_module("norm", nn.BatchNorm2d(out_shape(backbone, SMALLEST_PX)[0]))
    return backbone


def freeze(backbone: nn.Sequential, last: str) -> None:
    """Freeze every layer up to and including the one called `last`."""
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
