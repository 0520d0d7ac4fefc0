"""Draw Figure 5 into docs/figures: 3D MNIST through a trained network, from runs of your own or results/weights."""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from stn import draw
from stn.recorded import longest
from stn.results import records
from stn.training.job import rebuild
from stn.transformer import trace

ROOT = Path(__file__).parent.parent
SIDE_PX = 140
ROWS = ["input", "transformed", "projection", "without it"]


def figure5(record: records.Record, weights: Path, columns: int) -> Image.Image:
    """Figure 5 for the first test volumes: the input and the window read, V, its depth summed, the class predicted;
    then what the baseline's classifier sees, the depth of the input summed.
    """
    network, data = rebuild(record, weights, ROOT / "data")
    u = data.test_volumes(torch.arange(columns))
    (warp,) = trace(network, u)
    with torch.no_grad():
        said = network(u).argmax(1)
    top = draw.volume_warps(u, warp.source, warp.v, SIDE_PX)
    bottom = []
    for volume, guess, truth in zip(u, said.tolist(), data.test_labels.tolist(), strict=False):
        flat = volume.sum(1)
        tile = draw.tile(flat / flat.max(), SIDE_PX)
        bottom.append(draw.caption(tile, f"{guess}", "black" if guess == truth else "red"))
    return draw.label(draw.below(top, draw.stack([bottom])), ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/figures", help="default: docs/figures")
    parser.add_argument("--columns", type=int, default=8, help="test volumes shown (default: 8)")
    options = parser.parse_args()
    found = longest("voxel_st_cnn", ROOT, options.runs)
    if found is None:
        raise ValueError("no trained voxel_st_cnn: run it, or `make reproduce-3d`")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "figure5.png"
    figure5(*found, options.columns).save(path, optimize=True)
    print(f"written: {path}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
