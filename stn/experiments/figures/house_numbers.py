"""Table 2 right, (b): the composed boxes of ST-CNN Multi's four transformers."""

from functools import reduce
from pathlib import Path

import torch
from PIL import Image

from stn import Affine, trace
from stn.experiments import draw
from stn.experiments.datasets.svhn import text
from stn.experiments.figures import trained

SIDE_PX = 112


def boxes(runs: Path, data: str, size_px: int) -> Image.Image:
    """The first 16 test images with the quadrilateral of the four composed affine maps, and the predicted number."""
    network, numbers = trained("svhn_multi", runs, name=data, size_px=size_px)
    u, label = (part[:16] for part in next(iter(numbers.test_batches())))
    with torch.no_grad():
        predicted = network(u).argmax(-1)
    together = reduce(Affine().compose, [warp.theta for warp in trace(network, u)]).view(-1, 2, 3)
    pictures = [
        draw.caption(draw.box_tile(x, m, SIDE_PX), text(p) if torch.equal(p, true) else f"{text(p)} (wrong)",
                     wrong=not torch.equal(p, true))
        for x, m, p, true in zip(u, together, predicted, label, strict=True)
    ]  # fmt: skip
    return draw.stack([pictures[i : i + 4] for i in range(0, 16, 4)])
