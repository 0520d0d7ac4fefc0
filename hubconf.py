"""Recorded networks for `torch.hub`, in eval mode, named by experiment and data (torch.hub.list shows them).

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

    load.__doc__ = f"The network {name} in results/weights, with its weights, in eval mode."
    return load


_results = _Path(__file__).parent / "results"
_kept = _json.loads((_results / "weights/index.json").read_text())
_records = [_json.loads(_line) for _line in (_results / "records.jsonl").read_text().splitlines()]
_errors = {_r["id"]: _r["metrics"].get("test/error", 100.0) for _r in _records}
for _name in sorted(_kept, key=lambda name: -_errors[name]):  # the better of two with one short name comes last
    for _words in (2, 3):
        globals()["_".join(_name.split("-")[:_words])] = _entry(_name)
