"""Table 3 right: the windows of trained bird networks on test images, and the position of the head."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from stn.experiments import draw
from stn.experiments.figures import trained
from stn.experiments.networks.cub import StCnn

COLUMNS, SIDE_PX, DOT_PX = 8, 112, 3


def windows(runs: Path, experiment: str, data: str) -> Image.Image:
    """Test images, spread evenly over the classes, with the windows of transformers 1, 2, ... and a dot on the head."""
    network, birds = trained(experiment, runs, name=data, test_split="test")
    assert isinstance(network, StCnn)
    order = birds.listing.labels[birds.test].argsort(kind="stable")
    chosen = order[:: max(1, len(order) // COLUMNS)][:COLUMNS].tolist()
    batches = list(birds.test_batches())
    u = torch.cat([images for images, _ in batches])[chosen]
    heads = torch.cat([target["parts"] for _, target in batches])[chosen, 0]
    with torch.no_grad():
        seen = network.windows(u)
    tiles = [
        _dotted(draw.boxes(image[:3], boxes, SIDE_PX), head.tolist())
        for image, boxes, head in zip(u, seen, heads, strict=True)
    ]
    names = [f"window {i + 1}" for i in range(seen.shape[1])]
    return draw.legend(draw.stack([tiles[: COLUMNS // 2], tiles[COLUMNS // 2 :]]), names)


def _dotted(tile: Image.Image, at: list[float]) -> Image.Image:
    x, y = ((each + 1) / 2 * (tile.width - 1) for each in at)
    ImageDraw.Draw(tile).ellipse(
        (x - DOT_PX, y - DOT_PX, x + DOT_PX, y + DOT_PX), fill="white", outline="black", width=2
    )
    return tile
