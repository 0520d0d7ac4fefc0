"""scripts/export_onnx.py: the exported network computes the same in ONNX Runtime, or leaves no file."""

import re
import runpy
import sys

import numpy as np
import pytest
import torch
from torch import nn

from stn import Affine, Projective, SpatialTransformer, ThinPlateSpline, trace
from stn.experiments import zoo
from stn.experiments.command import ROOT
from stn.localisation import fully_connected

pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

NAME = "mnist_st_cnn_tps-rts-fast-"  # kept in git, whatever runs/ has beside it


@pytest.fixture
def script():
    return runpy.run_path(str(ROOT / "scripts/export_onnx.py"))


class Three(nn.Module):
    """A spatial transformer with each transform on the same input, at thetas off the identity."""

    def __init__(self):
        super().__init__()
        self.warps = nn.ModuleList()
        for transform in (Affine(), Projective(), ThinPlateSpline()):
            localisation = fully_connected((1, 28, 28), transform)
            nn.init.normal_(localisation[-1].weight, std=0.5)
            self.warps.append(SpatialTransformer(localisation, transform))

    def forward(self, u):
        return tuple(warp(u) for warp in self.warps)


def test_every_transform_is_the_same_in_onnx_runtime(script, tmp_path):
    torch.manual_seed(0)
    network, u = Three(), torch.rand(5, 1, 28, 28)
    moved = [(v - u).abs().mean() for v in network(u)]
    assert min(moved) > 0.01
    script["export"](network, u[:2], tmp_path / "three.onnx", ["affine", "projective", "spline"])
    for n in (1, 5):  # exported with 2
        assert script["difference"](network, tmp_path / "three.onnx", u[:n]) < script["TOLERANCE"]
    with torch.no_grad():
        network.warps[2].localisation[-1].bias += 0.01
    assert script["difference"](network, tmp_path / "three.onnx", u) > script["TOLERANCE"]  # it would be seen


def test_a_recorded_network_is_exported_with_its_grid(script, tmp_path, monkeypatch, capsys):
    model, file = zoo.load(NAME, ROOT), tmp_path / "digits.onnx"
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", NAME, "--grid", "--out", str(file)])
    script["main"]()
    assert re.search(r"input u \(batch, 1, 42, 42\), opset 20; ONNX Runtime differs", capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]
    written = file.read_bytes()
    assert str(ROOT).encode() not in written
    assert b".py" not in written
    u = torch.rand(3, *model.in_shape)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (warp,) = trace(model.network, u)
    with torch.no_grad():
        expected = (model.network(u), warp.source, warp.v)
    for array, tensor in zip(session.run(["logits", "source", "v"], {"u": u.numpy()}), expected, strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), atol=1e-3)


def test_a_network_without_a_transformer_has_no_grid(script, tmp_path):
    with pytest.raises(ValueError, match=r"^mnist_cnn-rts-\S+ has no spatial transformer: leave out --grid$"):
        script["checked"](zoo.load("mnist_cnn-rts-fast-", ROOT), tmp_path / "plain.onnx", grid=True)


def kept_networks():
    """The networks of results/weights."""
    return sorted(path.stem for path in (ROOT / "results/weights").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", kept_networks())
def test_every_kept_network_is_exported(name, script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", name, "--out", str(tmp_path / "network.onnx")])
    script["main"]()
    assert str(ROOT).encode() not in (tmp_path / "network.onnx").read_bytes()


def test_a_file_that_is_there_is_kept_without_force(script, tmp_path, monkeypatch):
    (tmp_path / "digits.onnx").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", NAME, "--out", str(tmp_path / "digits.onnx")])
    with pytest.raises(
        ValueError, match=r"^\S+digits.onnx exists: overwrite it with --force, or choose another file with --out$"
    ):
        script["main"]()
    assert (tmp_path / "digits.onnx").read_text() == "mine"


def test_a_file_that_fails_its_check_is_not_kept(script, tmp_path, monkeypatch):
    file = tmp_path / "digits.onnx"
    file.write_text("an older one")
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", NAME, "--force", "--out", str(file)])
    monkeypatch.setitem(script["main"].__globals__, "export", lambda network, u, path, outputs: path.write_text("new"))
    monkeypatch.setitem(script["main"].__globals__, "difference", lambda network, path, u: 0.5)
    with pytest.raises(
        ValueError, match=r"^the exported network differs from PyTorch by 5.0e-01 [^\n]*: nothing was written$"
    ):
        script["main"]()
    assert file.read_text() == "an older one"
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]
