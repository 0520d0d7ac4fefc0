"""Figures 1 and 3, Table 1 right, and samples of the distortions: one spatial transformer on distorted MNIST."""

from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from stn import Affine, regular_grid, sample, trace
from stn.experiments import draw
from stn.experiments.datasets.mnist import DistortedMnist
from stn.experiments.figures import SIDE_PX, distorted_mnist, trained

DISTORTIONS = ("r", "rts", "p", "ps", "e", "tc")


def distortions(runs: Path, columns: int = 11) -> Image.Image:
    """A row of training examples for every distortion, each at its own canvas size."""
    rows, names = [], []
    for name in DISTORTIONS:
        u, _ = distorted_mnist(name).batch(columns, Generator().manual_seed(1))
        rows.append([draw.tile(image, SIDE_PX) for image in u])
        names.append(f"{name.upper()}, {u.shape[-1]} px")
    return draw.label(draw.stack(rows), names)


def by_hand(runs: Path) -> Image.Image:
    """Figure 3: the regular grid, and the grid of an affine transform, on an input and what they sample."""
    u, _ = distorted_mnist("rts").batch(4, Generator().manual_seed(3))
    u = u[3:]
    size = (u.shape[2], u.shape[3])
    row = []
    for theta in (Affine.identity, (0.6, 0.25, 0.1, -0.25, 0.6, -0.05)):
        source = Affine()(torch.tensor([theta]), regular_grid(size))
        v = sample(u, source, size)
        row += [draw.grid_tile(u[0], source[0], size, 2 * SIDE_PX), draw.tile(v[0], 2 * SIDE_PX)]
    return draw.stack([row])


def predictions(network: nn.Module, data: DistortedMnist) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(u).argmax(1) for u, _ in data.test_batches()])


def warp_rows(network: nn.Module, data: DistortedMnist, index: Tensor, baseline: Tensor | None = None) -> Image.Image:
    """Input, predicted grid, output, and the predicted class below it, red where it is wrong."""
    u = data.test.tensors[0][index].float() / 255
    (warp,) = trace(network, u)
    size = (warp.v.shape[2], warp.v.shape[3])
    predicted = predictions(network, data)
    truth = data.test.tensors[1]
    bottom = []
    for i, v in zip(index.tolist(), warp.v, strict=True):
        text = f"{predicted[i]}" if baseline is None else f"{predicted[i]}, not {baseline[i]}"
        bottom.append(draw.caption(draw.tile(v, SIDE_PX), text, "black" if predicted[i] == truth[i] else "red"))
    top = draw.stack([
        [draw.tile(x, SIDE_PX) for x in u],
        [draw.grid_tile(x, s, size, SIDE_PX) for x, s in zip(u, warp.source, strict=True)],
    ])  # fmt: skip
    return draw.below(top, draw.stack([bottom]))


def first_images(runs: Path, experiment: str, distortion: str, columns: int = 10) -> Image.Image:
    """Figure 1: (a) input, (b) predicted grid, (c) output, (d) prediction, for the first test images."""
    return warp_rows(*trained(experiment, runs, distortion=distortion), torch.arange(columns))


def won(runs: Path, experiment: str, distortion: str, columns: int = 10) -> Image.Image:
    """Table 1 right: test images that the CNN gets wrong and the ST-CNN right."""
    network, data = trained(experiment, runs, distortion=distortion)
    truth = data.test.tensors[1]
    baseline = predictions(*trained("mnist_cnn", runs, distortion=distortion))
    index = ((predictions(network, data) == truth) & (baseline != truth)).nonzero().flatten()
    return warp_rows(network, data, index[:columns], baseline)
