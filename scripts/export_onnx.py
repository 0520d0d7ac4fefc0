"""Export a recorded network to ONNX, and check the file in ONNX Runtime against PyTorch.

python scripts/export_onnx.py mnist_st_cnn_tps-rts --out digits.onnx

Input `u` (batch, 1, S, S) in [0, 1] with 0 for the background, output the class scores `logits` (batch, 10),
for a batch of any size.
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from stn import recorded

ROOT = Path(__file__).parent.parent
OPSET = 20  # GridSample is there from 16 on, for volumes from 20 on
TOLERANCE = 1e-4  # largest difference to PyTorch over all outputs, relative to the largest of them


def export(network: nn.Module, u: Tensor, path: Path, outputs: list[str]) -> None:
    """Write the network as ONNX for inputs like u (B, ...), whatever their B."""
    with torch.no_grad():
        network.eval()(u)  # the constant matrix of a spline is made before it is traced
    program = torch.onnx.export(
        network, (u,), dynamo=True, opset_version=OPSET, input_names=["u"], output_names=outputs,
        dynamic_shapes=({0: "batch"},), verbose=False,
    )  # fmt: skip
    assert program is not None
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name, or its beginning, of runs/ or results/weights/")
    parser.add_argument("--out", type=Path, help="the file (default: MODEL.onnx here)")
    options = parser.parse_args()
    model = recorded.load(options.model, ROOT)
    out = options.out or Path(f"{model.name}.onnx")
    warnings.filterwarnings("ignore")
    try:
        export(model.network, torch.rand(2, *model.in_shape), out, ["logits"])
        worst = max(difference(model.network, out, torch.rand(n, *model.in_shape)) for n in (1, 7))
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install -c constraints.txt -e '.[onnx]'") from None
    if worst > TOLERANCE:
        raise ValueError(f"{out} differs from PyTorch by {worst:.1e} of the largest score, more than {TOLERANCE:.0e}")
    print(f"written: {out}, input u (batch, {', '.join(map(str, model.in_shape))}), opset {OPSET}; "
          f"ONNX Runtime differs from PyTorch by {worst:.1e} of the largest score")  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
