"""Table 4 right: what two parallel spatial transformers do to the two channels of MNIST addition."""

from pathlib import Path

import torch
from PIL import Image

from stn import trace
from stn.experiments import draw
from stn.experiments.figures import SIDE_PX, trained


def parallel(runs: Path, experiment: str, columns: int = 8) -> Image.Image:
    """The first test examples: both channels, under the grid of each transformer and after it; the predicted sum."""
    network, data = trained(experiment, runs)
    u = data.test.tensors[0][:columns].float() / 255
    truth = data.test.tensors[1][:columns].tolist()
    with torch.no_grad():
        predicted = network(u).argmax(1).tolist()
    rows = [[draw.tile(x[c : c + 1], SIDE_PX) for x in u] for c in range(2)]
    names = ["channel 1", "channel 2"]
    for k, warp in enumerate(trace(network, u), start=1):
        size = (warp.v.shape[2], warp.v.shape[3])
        for c in range(2):
            one = slice(c, c + 1)
            rows.append([draw.grid_tile(x[one], s, size, SIDE_PX) for x, s in zip(u, warp.source, strict=True)])
            rows.append([draw.tile(v[one], SIDE_PX) for v in warp.v])
            names += [f"ST{k} on {c + 1}", f"ST{k} of {c + 1}"]
    texts = [f"{p}" if p == t else f"{p}, not {t}" for p, t in zip(predicted, truth, strict=True)]
    colours = ["black" if p == t else "red" for p, t in zip(predicted, truth, strict=True)]
    bottom = [draw.caption(tile, *line) for tile, *line in zip(rows.pop(), texts, colours, strict=True)]
    return draw.below(draw.label(draw.stack(rows), names[:-1]), draw.label(draw.stack([bottom]), names[-1:]))
