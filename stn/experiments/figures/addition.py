"""Table 4 right: what two parallel spatial transformers do to the two channels of MNIST addition."""

from pathlib import Path

import torch
from PIL import Image

from stn import trace
from stn.experiments import draw
from stn.experiments.figures import SIDE_PX, trained
from stn.experiments.figures.digits import classes


def parallel(runs: Path, experiment: str, columns: int = 6) -> Image.Image:
    """The first test examples: both channels with the grid of each transformer, its outputs, the predicted sum."""
    network, data = trained(experiment, runs)
    u = data.test.tensors[0][:columns].float() / 255
    with torch.no_grad():
        predicted = network(u).argmax(1)
    rows = [(f"channel {c + 1}", [draw.tile(x[c : c + 1], SIDE_PX) for x in u]) for c in range(2)]
    for k, warp in enumerate(trace(network, u), start=1):
        size = (warp.v.shape[2], warp.v.shape[3])
        for c in range(2):
            one = slice(c, c + 1)
            grids = [draw.grid_tile(x[one], s, size, SIDE_PX) for x, s in zip(u, warp.source, strict=True)]
            rows.append((f"ST{k} on {c + 1}", grids))
            rows.append((f"ST{k} of {c + 1}", [draw.tile(v[one], SIDE_PX) for v in warp.v]))
    return draw.rows([*rows, ("sum", classes(predicted, data.test.tensors[1][:columns]))])
