"""A.2's loss by the size of the windows, without training."""

import math
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from stn import Attention, SpatialTransformer
from stn.experiments import zoo
from stn.experiments.command import ROOT
from stn.experiments.datasets import DIGIT_PX
from stn.experiments.datasets.colocalisation import CANVAS_PX, CommonDigit
from stn.experiments.figures.studies import LINE, RULE, SIDE, Pen, W
from stn.experiments.results.curves import COLOURS
from stn.experiments.training.colocalisation import Encoder
from stn.experiments.yaml_files import read_yaml

SCALES = tuple(0.22 + 0.02 * i for i in range(21))
COMMON = 0.36  # scale of the other windows where one alone changes
SEED = 100  # of the images: none that Table 5 reports
HEIGHT, LEFT, LOW, HIGH = 420, 84, 0.3, 3000.0  # px, px, and the ends of the loss's axis
PASSES = (1 / 18**0.5, 2**0.5 / 3)  # a window centred on its digit has an IoU above 0.5 between these scales


def by_scale(encoder: nn.Module, digit: int) -> tuple[list[float], list[float], float]:
    """The loss at SCALES where one window alone has them, and where all have, and with all windows on nothing.

    Every window is centred on its digit, but for a random half pixel at most, and meets one random crop.
    """
    data = CommonDigit(ROOT / "data", digit, 0, 100, 1, 0.0, "square", SEED)
    generator, n = Generator().manual_seed(SEED), len(data.images)
    u = data.images.float() / 255
    random = encoder(next(data.crops()))
    px = (data.boxes[:, :2] + data.boxes[:, 2:] - 1) / 2 + torch.rand(n, 2, generator=generator)
    st = SpatialTransformer(nn.Identity(), Attention(), (DIGIT_PX, DIGIT_PX))

    def encoded(scale: float) -> Tensor:
        at = (2 * px / CANVAS_PX - 1).clamp(scale - 1, 1 - scale)
        return encoder(st.warp(u, torch.cat([torch.full((n, 1), scale), at], dim=1)))

    def loss(mine: Tensor, others: Tensor) -> float:  # `triplet_hinge`, but with the crops of m from elsewhere
        to_random = (mine - random).square().sum(1)
        hinge = (torch.cdist(mine, others).square() - to_random[:, None] + 1).clamp(min=0)
        return (hinge.sum() - hinge.diagonal().sum()).item() / (n * (n - 1))

    common, nothing = encoded(COMMON), encoder(torch.zeros_like(u[..., :DIGIT_PX, :DIGIT_PX]))
    crops = [encoded(scale) for scale in SCALES]
    return [loss(crop, common) for crop in crops], [loss(crop, crop) for crop in crops], loss(nothing, nothing)


@torch.no_grad()
def loss_by_scale(runs: Path) -> Image.Image:
    """A line per digit class, of one window's scale and of all windows' together; below, the loss on nothing."""
    name = read_yaml(ROOT / "conf/objective/colocalisation.yaml")["encoder"]
    encoder = Encoder(zoo.load(name, ROOT, runs).network)
    found = [by_scale(encoder, digit) for digit in range(10)]
    pen = Pen(HEIGHT)
    top, bottom = 2.5 * LINE, HEIGHT - 2.5 * LINE

    def x(scale: float) -> float:
        return LEFT + (W - LEFT - SIDE) * (scale - SCALES[0]) / (SCALES[-1] - SCALES[0])

    def y(loss: float) -> float:
        return bottom - (bottom - top) * math.log(loss / LOW) / math.log(HIGH / LOW)

    for tick in (1, 10, 100, 1000):
        pen.line(LEFT, y(tick), W - SIDE, y(tick), RULE, 1)
        pen.text(LEFT - 8, y(tick), f"{tick:,}", "rm")
    for scale in (0.3, 0.4, 0.5, 0.6):
        pen.text(x(scale), bottom + 18, f"{scale:g}", "mm")
    for scale in PASSES:
        pen.line(x(scale), top, x(scale), bottom, RULE, 2)
    pen.text(W / 2, bottom + 48, "scale of the window", "mm")
    pen.text(8, top + 8, "loss")
    legend = (f"one window, the others at {COMMON}", "all windows", "all on nothing")
    for i, words in enumerate(legend):
        at = (16.0, 16.0 + i * LINE) if i < 2 else (W / 2 + 40, 16.0)
        pen.line(at[0], at[1], at[0] + 24, at[1], COLOURS[1 + i], 3)
        pen.text(at[0] + 32, at[1], words)
    for one, together, nothing in found:
        for i, losses in enumerate((one, together, [nothing] * len(SCALES))):
            points = [(x(scale), y(loss)) for scale, loss in zip(SCALES, losses, strict=True)]
            for (x0, y0), (x1, y1) in pairwise(points):
                pen.line(x0, y0, x1, y1, COLOURS[1 + i], 2)
    return pen.done()
