"""Export a recorded network to ONNX, and compare the file in ONNX Runtime with PyTorch.

python scripts/export_onnx.py mnist_st_cnn_tps-rts --out digits.onnx

The input is `u` (batch, C, S, S) in [0, 1] with 0 for the background, the output the class scores `logits` (batch,
classes), for batches of any size.  --grid adds the outputs `source` (batch, H' W', 2), the sampling grid of the first
spatial transformer, and `v` (batch, C, H', W'), the output of the last.  The comparison uses the first images of the
network's own test set.  A file that differs is deleted.
"""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from stn import trace
from stn.experiments import build, zoo
from stn.experiments.command import ROOT, Options, a_file, run
from stn.experiments.errors import writing

OPSET = 20  # GridSample needs 16, for volumes 20
BATCHES = 1, 7  # batch sizes that are checked; the export uses 2
TOLERANCE = 1e-4  # largest difference from PyTorch over all outputs, relative to the largest output


class WithGrid(nn.Module):
    """(logits, source, v) of a network with a spatial transformer."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits: list[Tensor] = []
        hook = self.network.register_forward_hook(lambda *call: logits.append(call[2]))
        warps = trace(self.network, u)
        hook.remove()
        return logits[0], warps[0].source, warps[-1].v


def export(network: nn.Module, u: Tensor, path: Path, outputs: list[str]) -> None:
    """Write the network as ONNX, for inputs like u (B, ...) with any B."""
    program = torch.onnx.export(
        network.eval(), (u,), dynamo=True, opset_version=OPSET, input_names=["u"], output_names=outputs,
        dynamic_shapes=({0: "batch"},), verbose=False,
    )  # fmt: skip
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with paths of this machine
    program.save(path)


def difference(network: nn.Module, path: Path, u: Tensor) -> float:
    """The largest difference between the file in ONNX Runtime and the network, relative to its largest output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        here = network(u)
    here = here if isinstance(here, tuple) else (here,)
    there = [torch.from_numpy(array) for array in session.run(None, {"u": u.numpy()})]
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(here, there, strict=True))


def checked(model: zoo.Recorded, out: Path, grid: bool = False) -> float:
    """Write a recorded network to `out`; return its relative difference from PyTorch, at most TOLERANCE.

    Raises ValueError on a larger difference, if `grid` is asked of a network without a transformer, and without the
    extra `onnx`.
    """
    if grid and not trace(model.network, torch.zeros(1, *model.in_shape)):
        raise ValueError(f"{model.id} has no spatial transformer: leave out --grid")
    u = next(iter(build.data_set(model.record["config"]["data"], ROOT / "data").test_batches()))[0][: max(BATCHES)]
    network = WithGrid(model.network) if grid else model.network
    unchecked = out.with_name(f".{out.name}.unchecked")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with writing(out):
                export(network, u[:2], unchecked, ["logits", "source", "v"] if grid else ["logits"])
            worst = max(difference(network, unchecked, u[:n]) for n in BATCHES)
        if worst > TOLERANCE:
            raise ValueError(
                f"the exported network differs from PyTorch by {worst:.1e} of the largest score, more than "
                f"{TOLERANCE:.0e}: nothing was written"
            )
        os.replace(unchecked, out)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install -c constraints.txt -e '.[onnx]'") from None
    finally:
        unchecked.unlink(missing_ok=True)
    return worst


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("model", help="the id of a run in runs/ or results/weights/, or its beginning")
    parser.add_argument("--out", type=a_file, help="the file (default: MODEL.onnx in this folder)")
    parser.add_argument("--grid", action="store_true", help="also output the sampling grid and the warped image")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    options = parser.parse_args()
    model = zoo.load(options.model, ROOT)
    out = options.out or Path(f"{model.id}.onnx")
    if out.exists() and not options.force:
        raise ValueError(f"{out} exists: overwrite it with --force, or choose another file with --out")
    worst = checked(model, out, options.grid)
    print(f"written: {out}, input u (batch, {', '.join(map(str, model.in_shape))}), opset {OPSET}; "
          f"ONNX Runtime differs from PyTorch by {worst:.1e} of the largest score")  # fmt: skip


if __name__ == "__main__":
    run(main)
