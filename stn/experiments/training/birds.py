"""Fine-grained classification (Sect. 4.3): cross entropy, accuracy, and the parts that each window shows."""

from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stn.experiments.datasets.cub import GROUPS
from stn.experiments.networks.cub import StCnn
from stn.experiments.training.classification import Classification

# Raise it when a change alters the loss or a metric.
# 2: the correlation of windows with parts.
REVISION = 2


class Birds(Classification):
    """Training uses labels alone; the parts are for the test.

    In percent: `accuracy` over the whole test set, `accuracy_kept` without the excluded images, and `st<i>_<part>`, the
    share of images with a visible part in which window i contains it.  `st<i>_<part>_correlation_<axis>` is Pearson's
    correlation between the centre of window i and the position of the part over these images, from -1 to 1.
    """

    data = ("cub", "synthetic_birds")

    def __init__(self) -> None:
        self.tested: list[
            tuple[Tensor, Tensor, Tensor]
        ] = []  # for each batch: window centres, parts, which parts are visible

    def test(self, network: nn.Module, batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        u, target = batch
        right = 100 * (network(u).argmax(1) == target["label"]).float()
        metrics = {"error": 100 - right.mean(), "accuracy": right.mean()}
        if (target["kept"] != 1).any():  # without excluded images every weight is 1
            metrics["accuracy_kept"] = (right * target["kept"]).mean()
        st_cnn: Any = network.tested
        if isinstance(st_cnn, StCnn):
            windows = st_cnn.windows(u)
            self.tested.append(((windows[..., :2] + windows[..., 2:]) / 2, target["parts"], target["seen"] > 0))
            shown = contains(windows, target["parts"])
            shares = (100 * shown.float() * target["seen"][:, None]).mean(0)
            for i, window in enumerate(shares):
                metrics |= {f"st{i + 1}_{part}": share for part, share in zip(GROUPS, window, strict=True)}
        return metrics

    def after_test(self) -> dict[str, float]:
        """The correlations over all batches since the last call."""
        if not self.tested:
            return {}
        batches, self.tested = self.tested, []
        centres, parts, seen = (torch.cat(values).cpu().numpy() for values in zip(*batches, strict=True))
        return {
            f"st{i + 1}_{part}_correlation_{axis}": correlation(centres[seen[:, p], i, a], parts[seen[:, p], p, a])
            for i, (p, part), (a, axis) in product(range(centres.shape[1]), enumerate(GROUPS), enumerate("xy"))
        }


def correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Pearson's r; 0 if x or y is constant, up to rounding."""
    if min(np.ptp(x), np.ptp(y)) < 1e-6:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def contains(windows: Float[Tensor, "b n 4"], points: Float[Tensor, "b p 2"]) -> Bool[Tensor, "b n p"]:
    """Whether window (x0, y0, x1, y1) i of an image contains its point p."""
    low, high = windows[:, :, None, :2], windows[:, :, None, 2:]
    inside = (low <= points[:, None]) & (points[:, None] <= high)
    return torch.all(inside, dim=-1)
