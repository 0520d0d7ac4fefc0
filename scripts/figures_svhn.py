"""Draw Table 2 right, (b): the boxes that ST-CNN Multi's four transformers make together, and samples of the data.

They need the data and a trained network: a run of your own below runs/, or results/weights.
"""

import argparse
import sys
from pathlib import Path

import torch

from stn import draw
from stn.datasets.svhn import NULL
from stn.networks.svhn import compose
from stn.recorded import longest
from stn.training.job import rebuild
from stn.transformer import trace

ROOT = Path(__file__).parent.parent
SIDE_PX = 112


def text(labels: torch.Tensor) -> str:
    return "".join(str(digit) for digit in labels.tolist() if digit != NULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="default: data")
    options = parser.parse_args()
    for size_px in (64, 128):
        found = longest("svhn_multi", ROOT, options.runs, size_px=size_px)
        if found is None:
            print(f"no trained svhn_multi at {size_px} px: run it, or `make reproduce-table2`")
            continue
        network, data = rebuild(*found, options.data)
        u, label = (part[:16] for part in next(iter(data.test_batches())))
        with torch.no_grad():
            said = network(u).argmax(-1)
        pictures = [
            draw.caption(draw.box_tile(x, m, SIDE_PX), text(s), "black" if torch.equal(s, true) else "red")
            for x, m, s, true in zip(u, compose([w.theta for w in trace(network, u)]), said, label, strict=True)
        ]
        name = f"table2_right_{'rendered' if data.made else 'svhn'}_{size_px}px.png"
        draw.stack([pictures[:8], pictures[8:]]).save(ROOT / "docs/figures" / name, optimize=True)
        print(f"written: docs/figures/{name}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
