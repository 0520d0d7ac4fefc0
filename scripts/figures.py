"""Draw the figures of README and docs into docs/figures.

distortions.png needs the data alone, the others trained networks: runs of your own below runs/, or results/weights.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from stn import draw, regular_grid
from stn.datasets.distortions import DISTORTIONS
from stn.datasets.mnist import DistortedMnist
from stn.recorded import longest
from stn.training.job import rebuild
from stn.transformer import trace

ROOT = Path(__file__).parent.parent
SIDE_PX = 84
NAMES = {
    "r": "R", "rts": "RTS", "p": "P", "ps": "PS", "e": "E", "tc": "TC",
    "mnist_st_fcn_affine": "ST-FCN Aff", "mnist_st_cnn_affine": "ST-CNN Aff", "mnist_st_cnn_tps": "ST-CNN TPS",
}  # fmt: skip


def distortions(columns: int = 11) -> Image.Image:
    """A row of training examples for every distortion, each at its own canvas size."""
    rows = []
    for name in DISTORTIONS:
        u, _ = DistortedMnist(ROOT / "data", name).batch(columns, Generator().manual_seed(1))
        rows.append([draw.tile(image, SIDE_PX) for image in u])
    sheet = draw.stack(rows)
    return draw.label(sheet, [f"{NAMES[name]}, {d.canvas_px} px" for name, d in DISTORTIONS.items()])


def figure3() -> Image.Image:
    """Figure 3: the regular grid, and the grid of an affine transform, on an input and what they sample."""
    from stn import Affine, sample

    data = DistortedMnist(ROOT / "data", "rts")
    u, _ = data.batch(4, Generator().manual_seed(3))
    u = u[3:]
    target = regular_grid((42, 42))
    rows = []
    for theta in (Affine.identity, (0.6, 0.25, 0.1, -0.25, 0.6, -0.05)):
        source = Affine()(torch.tensor([theta]), target)
        v = sample(u, source, (42, 42))
        rows.append([draw.grid_tile(u[0], source[0], (42, 42), 2 * SIDE_PX), draw.tile(v[0], 2 * SIDE_PX)])
    return draw.stack([rows[0] + rows[1]])


def find(folder: Path, experiment: str, distortion: str) -> tuple[nn.Module, DistortedMnist] | None:
    """The longest-trained network of an experiment on a distortion, with its data."""
    found = longest(experiment, ROOT, folder, distortion=distortion)
    if found is None:
        print(f"no trained {experiment} on {distortion}: run it, or `make reproduce-table1`")
        return None
    return rebuild(*found, ROOT / "data")


def predictions(network: nn.Module, data: DistortedMnist) -> Tensor:
    images = data.test.tensors[0]
    with torch.no_grad():
        return torch.cat([network(part.float() / 255).argmax(1) for part in images.split(1000)])


def warp_rows(network: nn.Module, data: DistortedMnist, index: Tensor, baseline: Tensor | None = None) -> Image.Image:
    """Figure 1 and Table 1 right: input, predicted grid, output, and the classes predicted below."""
    u = data.test.tensors[0][index].float() / 255
    (warp,) = trace(network, u)
    size = (warp.v.shape[2], warp.v.shape[3])
    said = predictions(network, data)
    truth = data.test.tensors[1]
    bottom = []
    for i, v in zip(index.tolist(), warp.v, strict=True):
        text = f"{said[i]}" if baseline is None else f"{said[i]}, not {baseline[i]}"
        bottom.append(draw.caption(draw.tile(v, SIDE_PX), text, "black" if said[i] == truth[i] else "red"))
    top = draw.stack([
        [draw.tile(x, SIDE_PX) for x in u],
        [draw.grid_tile(x, s, size, SIDE_PX) for x, s in zip(u, warp.source, strict=True)],
    ])  # fmt: skip
    return draw.below(top, draw.stack([bottom]))


def figure1(folder: Path, experiment: str, distortion: str, columns: int = 10) -> Image.Image | None:
    """(a) input, (b) predicted grid, (c) output, (d) prediction, for the first test images."""
    found = find(folder, experiment, distortion)
    return None if found is None else warp_rows(*found, torch.arange(columns))


def table1_right(folder: Path, experiment: str, distortion: str, columns: int = 10) -> Image.Image | None:
    """Test images that the CNN gets wrong and the ST-CNN right."""
    st, plain = find(folder, experiment, distortion), find(folder, "mnist_cnn", distortion)
    if st is None or plain is None:
        return None
    truth = st[1].test.tensors[1]
    baseline = predictions(*plain)
    won = ((predictions(*st) == truth) & (baseline != truth)).nonzero().flatten()
    return warp_rows(*st, won[:columns], baseline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/figures", help="default: docs/figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "distortions": distortions(),
        "figure3": figure3(),
        "figure1_rts": figure1(options.runs, "mnist_st_cnn_tps", "rts"),
        "figure1_tc": figure1(options.runs, "mnist_st_cnn_affine", "tc"),
        "table1_right_r": table1_right(options.runs, "mnist_st_cnn_affine", "r"),
        "table1_right_rts": table1_right(options.runs, "mnist_st_cnn_tps", "rts"),
        "table1_right_e": table1_right(options.runs, "mnist_st_cnn_tps", "e"),
    }
    for name, picture in pictures.items():
        if picture is not None:
            picture.save(options.out / f"{name}.png", optimize=True)
            print(f"written: {options.out / name}.png")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
