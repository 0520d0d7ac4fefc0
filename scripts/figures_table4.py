"""What the parallel spatial transformers of Table 4 do: pictures, and a measure of which carries which channel.

docs/figures/table4_right_<experiment>.png shows test examples; results/table4_specialisation.json has, for every
2xST network, spreads and shares over the whole test set (stn/specialisation.py says what they are).  Both take the
longest-trained network of an experiment: of runs of your own below runs/, or of results/weights.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from stn import draw
from stn.datasets.addition import MnistAddition
from stn.recorded import longest
from stn.results import records
from stn.specialisation import measure
from stn.training.job import rebuild
from stn.transformer import trace

ROOT = Path(__file__).parent.parent
SIDE_PX = 84
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf/experiment").glob("addition_2xst_*.yaml"))


def picture(network: nn.Module, data: MnistAddition, columns: int = 8) -> Image.Image:
    """Table 4 right: the first test examples; both channels, under the grid of each transformer and behind it."""
    u = data.test.tensors[0][:columns].float() / 255
    truth = data.test.tensors[1][:columns].tolist()
    with torch.no_grad():
        said = network(u).argmax(1).tolist()
    rows = [[draw.tile(x[c : c + 1], SIDE_PX) for x in u] for c in range(2)]
    names = ["channel 1", "channel 2"]
    for k, warp in enumerate(trace(network, u), start=1):
        size = (warp.v.shape[2], warp.v.shape[3])
        for c in range(2):
            one = slice(c, c + 1)
            rows.append([draw.grid_tile(x[one], s, size, SIDE_PX) for x, s in zip(u, warp.source, strict=True)])
            rows.append([draw.tile(v[one], SIDE_PX) for v in warp.v])
            names += [f"ST{k} on {c + 1}", f"ST{k} of {c + 1}"]
    texts = [f"{s}" if s == t else f"{s}, not {t}" for s, t in zip(said, truth, strict=True)]
    colours = ["black" if s == t else "red" for s, t in zip(said, truth, strict=True)]
    bottom = [draw.caption(tile, *line) for tile, *line in zip(rows.pop(), texts, colours, strict=True)]
    return draw.below(draw.label(draw.stack(rows), names[:-1]), draw.label(draw.stack([bottom]), names[-1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/figures", help="default: docs/figures")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="of the measure (default: results)")
    options = parser.parse_args()
    for folder in (options.out, options.results):
        folder.mkdir(parents=True, exist_ok=True)
    measured = []
    for experiment in EXPERIMENTS:
        found = longest(experiment, ROOT, options.runs)
        if found is None:
            print(f"no trained {experiment}: run it, or `make reproduce-table4`")
            continue
        record, weights = found
        network, data = rebuild(record, weights, ROOT / "data")
        picture(network, data).save(options.out / f"table4_right_{experiment}.png", optimize=True)
        kept = ("experiment", "schedule", "seed", "steps", "metrics", "commit", "dirty", "data_sha256")
        run = {key: record.get(key) for key in kept} | {"identity": records.identity(record["config"])}
        measured.append(run | measure(network, data))
        print(f"written: {options.out}/table4_right_{experiment}.png")
    if measured:
        (options.results / "table4_specialisation.json").write_text(json.dumps(measured, indent=1) + "\n")
        print(f"written: {options.results}/table4_specialisation.json")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
