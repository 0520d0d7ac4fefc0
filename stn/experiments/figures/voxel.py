"""Figure 5: 3D MNIST through a trained 3D spatial transformer."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from stn import trace
from stn.experiments import draw
from stn.experiments.figures import trained
from stn.experiments.figures.digits import classes

SIDE_PX = 112


def figure5(runs: Path, columns: int = 5) -> Image.Image:
    """Test volumes from the easiest to the hardest: the input with the sampled window, V, V summed over its depth, the
    predicted class; then the input of the baseline's classifier, U summed over its depth.

    The test set is ordered by the network's loss and cut into `columns` equal parts.  Each column shows the middle
    example of a part, so the middle column is the median example.
    """
    network, data = trained("voxel_st_cnn", runs, thickness_px=28.0)
    with torch.no_grad():
        losses = [F.cross_entropy(network(u), label, reduction="none") for u, label in data.test_batches()]
        index = evenly(torch.cat(losses), columns)
        u = data.test_images(index)
        predicted = network(u).argmax(1)
    (warp,) = trace(network, u)
    top = draw.volume_warps(u, warp.source, warp.v, SIDE_PX)
    pitch = SIDE_PX + draw.GAP_PX
    rows = [
        (name, [top.crop((x * pitch, y * pitch, x * pitch + SIDE_PX, y * pitch + SIDE_PX)) for x in range(columns)])
        for y, name in enumerate(("input", "transformed", "projection"))
    ]
    flat = [volume.sum(1) for volume in u]
    without = [draw.tile(image / image.max(), SIDE_PX) for image in flat]
    found = classes(predicted, data.test_labels[index], SIDE_PX)
    return draw.rows([*rows, ("class", found), ("without it", without)])


def evenly(loss: Float[Tensor, " n"], columns: int) -> Int[Tensor, " c"]:
    """The middle examples of `columns` equal parts, in the order of their loss."""
    return loss.argsort(stable=True)[(2 * torch.arange(columns) + 1) * len(loss) // (2 * columns)]
