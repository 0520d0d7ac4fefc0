"""Fine-grained classification (Sect. 4.3): cross entropy; accuracy, and which part of the bird each window shows."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stn.experiments.datasets.cub import GROUPS
from stn.experiments.networks.cub import StCnn
from stn.experiments.training.classification import Classification

REVISION = 1  # raise it when a change alters the loss or a metric


class Birds(Classification):
    """Labels alone are trained with; the parts are for the test.

    `accuracy` is over the whole test set, `accuracy_kept` without the excluded images, `st<i>_<part>` how often window
    i contains the part, among the images in which it is visible: all in percent.
    """

    def test(self, network: nn.Module, batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        u, target = batch
        right = 100 * (network(u).argmax(1) == target["label"]).float()
        metrics = {"error": 100 - right.mean(), "accuracy": right.mean()}
        if (target["kept"] != 1).any():  # where nothing is excluded, every weight is 1
            metrics["accuracy_kept"] = (right * target["kept"]).mean()
        st_cnn: Any = network.network
        if isinstance(st_cnn, StCnn):
            shown = contains(st_cnn.windows(u), target["parts"])
            shares = (100 * shown.float() * target["seen"][:, None]).mean(0)
            for i, window in enumerate(shares):
                metrics |= {f"st{i + 1}_{part}": share for part, share in zip(GROUPS, window, strict=True)}
        return metrics


def contains(windows: Float[Tensor, "b n 4"], points: Float[Tensor, "b p 2"]) -> Bool[Tensor, "b n p"]:
    """Whether window (x0, y0, x1, y1) i of an image contains its point p."""
    low, high = windows[:, :, None, :2], windows[:, :, None, 2:]
    inside = (low <= points[:, None]) & (points[:, None] <= high)
    return torch.all(inside, dim=-1)
