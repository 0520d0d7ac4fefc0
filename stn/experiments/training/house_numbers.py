"""House numbers (Sect. 4.2): the error of whole numbers, and the overlap of the sampled window with the number."""

from functools import reduce
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn import Affine, trace
from stn.experiments.datasets.svhn import number_side
from stn.experiments.training.classification import Classification

REVISION = 1  # raise it when a change alters the loss or a metric


class HouseNumbers(Classification):
    """Training uses labels alone; the number's box is for the test.

    In percent: `iou` is the mean intersection over union of that box and the quadrilateral of the composed affine maps
    of all transformers, `iou_above_50` the share of images in which it is above 50 %.
    """

    data = ("svhn", "svhn_rendered")

    def prepare(self, data: Any) -> None:
        """Store the number's relative size, which is the same in every crop."""
        self.number_side = number_side(data.in_shape[-1])

    def test(self, network: nn.Module, batch: tuple[Tensor, Any]) -> dict[str, Tensor]:
        metrics = super().test(network, batch)
        warps = trace(network, batch[0])
        if warps and all(warp.identity == Affine.identity for warp in warps):
            theta = reduce(Affine().compose, [warp.theta for warp in warps])
            iou = 100 * overlap(theta, self.number_side)
            metrics |= {"iou": iou.mean(), "iou_above_50": 100 * (iou > 50).float().mean()}
        return metrics


def overlap(theta: Float[Tensor, "b 6"], side: float) -> Float[Tensor, " b"]:
    """Intersection over union of each affine map's window and a centred square of `side` times the image's side."""
    corners = theta.new_tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    square = side * corners.cpu().numpy()
    read = Affine()(theta, corners).cpu().numpy()
    return torch.tensor([_overlap(square, each) for each in read], device=theta.device)


def _overlap(one: Float[np.ndarray, "4 2"], other: Float[np.ndarray, "4 2"]) -> float:
    common, _ = cv2.intersectConvexConvex(one, other)
    return common / (cv2.contourArea(one) + cv2.contourArea(other) - common)
