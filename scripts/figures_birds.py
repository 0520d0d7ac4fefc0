"""Draw Table 3 right into docs/figures: where the windows of trained bird networks are on test images.

Needs trained networks: runs of your own below runs/, or results/weights.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from stn import draw
from stn.networks.cub import StCnn
from stn.recorded import longest
from stn.results import records
from stn.training.job import rebuild

ROOT = Path(__file__).parent.parent
COLUMNS, SIDE_PX = 8, 112


def part_boxes(record: records.Record, weights: Path) -> Image.Image:
    """The first test image of each of some classes, with the windows of transformers 1, 2, ... in red, green, ..."""
    network, data = rebuild(record, weights, ROOT / "data")
    if not isinstance(network, StCnn):
        raise ValueError(f"{record['experiment']} has no windows to draw")
    labels = data.listing.labels[data.test]
    first = [int((labels == k).argmax()) for k in range(0, data.classes, max(1, data.classes // COLUMNS))][:COLUMNS]
    u = torch.cat([batch[0] for batch in data.test_batches()])[first]
    with torch.no_grad():
        windows = network.windows(u)
    return draw.stack([[draw.boxes(image, boxes, SIDE_PX) for image, boxes in zip(u, windows, strict=True)]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/figures", help="default: docs/figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for experiment in ("cub_2st_448", "cub_4st_448"):
        found = longest(experiment, ROOT, options.runs)
        if found is None:
            print(f"no trained {experiment}: run it, or `make reproduce-table3`")
            continue
        path = options.out / f"table3_right_{experiment}{'_made' if found[0]['made_data'] else ''}.png"
        part_boxes(*found).save(path, optimize=True)
        print(f"written: {path}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
