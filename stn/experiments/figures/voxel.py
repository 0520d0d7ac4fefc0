"""Figure 5: 3D MNIST through a trained 3D spatial transformer."""

from pathlib import Path

import torch
from PIL import Image

from stn import trace
from stn.experiments import draw
from stn.experiments.figures import trained
from stn.experiments.figures.digits import classes

SIDE_PX = 112


def figure5(runs: Path, columns: int = 5) -> Image.Image:
    """For the first test volumes: the input and the window that is read, V, its depth summed, the predicted class;
    then what the baseline's classifier sees, the depth of the input summed.
    """
    network, data = trained("voxel_st_cnn", runs)
    u = data.test_images(torch.arange(columns))
    (warp,) = trace(network, u)
    with torch.no_grad():
        predicted = network(u).argmax(1)
    top = draw.volume_warps(u, warp.source, warp.v, SIDE_PX)
    pitch = SIDE_PX + draw.GAP_PX
    rows = [
        (name, [top.crop((x * pitch, y * pitch, x * pitch + SIDE_PX, y * pitch + SIDE_PX)) for x in range(columns)])
        for y, name in enumerate(("input", "transformed", "projection"))
    ]
    flat = [volume.sum(1) for volume in u]
    without = [draw.tile(image / image.max(), SIDE_PX) for image in flat]
    found = classes(predicted, torch.as_tensor(data.test_labels[:columns]), SIDE_PX)
    return draw.rows([*rows, ("class", found), ("without it", without)])
