"""Figure 5: 3D MNIST through a trained 3D spatial transformer."""

from pathlib import Path

import torch
from PIL import Image

from stn import trace
from stn.experiments import draw
from stn.experiments.figures import trained

SIDE_PX = 140
ROWS = ["input", "transformed", "projection", "without it"]


def figure5(runs: Path, columns: int = 8) -> Image.Image:
    """For the first test volumes: the input and the window that is read, V, its depth summed, the predicted class;
    then what the baseline's classifier sees, the depth of the input summed.
    """
    network, data = trained("voxel_st_cnn", runs)
    u = data.test_volumes(torch.arange(columns))
    (warp,) = trace(network, u)
    with torch.no_grad():
        predicted = network(u).argmax(1)
    top = draw.volume_warps(u, warp.source, warp.v, SIDE_PX)
    bottom = []
    for volume, guess, truth in zip(u, predicted.tolist(), data.test_labels.tolist(), strict=False):
        flat = volume.sum(1)
        tile = draw.tile(flat / flat.max(), SIDE_PX)
        bottom.append(draw.caption(tile, f"{guess}", "black" if guess == truth else "red"))
    return draw.label(draw.below(top, draw.stack([bottom])), ROWS)
