"""Table 3 right: where the windows of trained bird networks are on test images."""

from pathlib import Path

import torch
from PIL import Image

from stn.experiments import draw
from stn.experiments.figures import trained
from stn.experiments.networks.cub import StCnn

COLUMNS, SIDE_PX = 8, 112


def windows(runs: Path, experiment: str, data: str) -> Image.Image:
    """The first test image of each of some classes, with the windows of transformers 1, 2, ..."""
    network, birds = trained(experiment, runs, name=data)
    assert isinstance(network, StCnn)
    labels = birds.listing.labels[birds.test]
    first = [int((labels == k).argmax()) for k in range(0, birds.classes, max(1, birds.classes // COLUMNS))][:COLUMNS]
    u = torch.cat([batch[0] for batch in birds.test_batches()])[first]
    with torch.no_grad():
        seen = network.windows(u)
    tiles = [draw.boxes(image, boxes, SIDE_PX) for image, boxes in zip(u, seen, strict=True)]
    names = [f"window {i + 1}" for i in range(seen.shape[1])]
    return draw.legend(draw.stack([tiles[: COLUMNS // 2], tiles[COLUMNS // 2 :]]), names)
