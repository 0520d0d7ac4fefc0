"""Figures 1 and 3, Table 1 right, and samples of the distortions: one spatial transformer on distorted MNIST."""

from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from stn import Affine, regular_grid, sample, trace
from stn.experiments import draw
from stn.experiments.datasets.mnist import DistortedMnist
from stn.experiments.figures import SIDE_PX, distorted_mnist, trained

DISTORTIONS = ("r", "rts", "p", "e", "tc")


def distortions(runs: Path, columns: int = 6) -> Image.Image:
    """A row of training examples for every distortion, with its canvas size."""
    rows = []
    for name in DISTORTIONS:
        u, _ = distorted_mnist(name).batch(columns, Generator().manual_seed(1))
        rows.append((f"{name.upper()}, {u.shape[-1]} px", [draw.tile(image, SIDE_PX) for image in u]))
    return draw.rows(rows)


def by_hand(runs: Path) -> Image.Image:
    """Figure 3: the regular grid and the grid of an affine transform, on an input, and what they sample."""
    u, _ = distorted_mnist("rts").batch(4, Generator().manual_seed(3))
    u = u[3:]
    size = (u.shape[2], u.shape[3])
    row = []
    for name, theta in (("regular", Affine.identity), ("affine", (0.6, 0.25, 0.1, -0.25, 0.6, -0.05))):
        source = Affine()(torch.tensor([theta]), regular_grid(size))
        v = sample(u, source, size)
        row.append(draw.caption(draw.grid_tile(u[0], source[0], size, 2 * SIDE_PX), f"{name} grid on U"))
        row.append(draw.caption(draw.tile(v[0], 2 * SIDE_PX), f"V, {name}"))
    return draw.stack([row])


def predictions(network: nn.Module, data: DistortedMnist) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(u).argmax(1) for u, _ in data.test_batches()])


def warp_rows(network: nn.Module, data: DistortedMnist, index: Tensor) -> list[tuple[str, list[Image.Image]]]:
    """Input, predicted grid and output as rows of `draw.rows`."""
    u = data.test.tensors[0][index].float() / 255
    (warp,) = trace(network, u)
    size = (warp.v.shape[2], warp.v.shape[3])
    return [
        ("input", [draw.tile(x, SIDE_PX) for x in u]),
        ("grid", [draw.grid_tile(x, s, size, SIDE_PX) for x, s in zip(u, warp.source, strict=True)]),
        ("output", [draw.tile(v, SIDE_PX) for v in warp.v]),
    ]


def classes(predicted: Tensor, truth: Tensor, width_px: int = SIDE_PX) -> list[Image.Image]:
    """The predicted classes; "3, not 5" if 5 is right."""
    return draw.classes([str(p) for p in predicted.tolist()], [str(t) for t in truth.tolist()], width_px)


def first_images(runs: Path, experiment: str, distortion: str, columns: int = 6) -> Image.Image:
    """Figure 1: (a) input, (b) predicted grid, (c) output, (d) prediction, for the first test images."""
    network, data = trained(experiment, runs, distortion=distortion)
    index = torch.arange(columns)
    with torch.no_grad():
        predicted = network(data.test.tensors[0][index].float() / 255).argmax(1)
    return draw.rows([*warp_rows(network, data, index), ("class", classes(predicted, data.test.tensors[1][index]))])


def won(runs: Path, experiment: str, distortion: str, columns: int = 6) -> Image.Image:
    """Table 1 right: test images that the CNN gets wrong and the ST-CNN right, with the predictions of both."""
    network, data = trained(experiment, runs, distortion=distortion)
    truth = data.test.tensors[1]
    ours, baseline = predictions(network, data), predictions(*trained("mnist_cnn", runs, distortion=distortion))
    index = ((ours == truth) & (baseline != truth)).nonzero().flatten()[:columns]
    both = [(name, classes(said[index], truth[index])) for name, said in (("ST-CNN", ours), ("CNN", baseline))]
    return draw.rows([*warp_rows(network, data, index), *both])
