"""Recorded networks by `torch.hub`, in eval mode: the experiment and its data name one (torch.hub.list shows them).

network = torch.hub.load("owner/repo", "mnist_st_cnn_tps_rts")
network = torch.hub.load("path/of/a/clone", "mnist_st_cnn_tps_rts", source="local")
"""

import json as _json
from pathlib import Path as _Path

from torch import nn as _nn

dependencies = ["jaxtyping", "omegaconf", "pytorch_lightning", "safetensors", "torch", "torchvision"]


def _entry(name: str):
    def load() -> _nn.Module:
        from stn.experiments import zoo

        return zoo.load(name).network

    load.__doc__ = f"The network {name} of results/weights, with its weights, in eval mode."
    return load


for _name in _json.loads((_Path(__file__).parent / "results/weights/index.json").read_text()):
    globals()["_".join(_name.split("-")[:2])] = _entry(_name)
