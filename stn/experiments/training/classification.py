"""The loss and the error of a classifier: pure tensor code, so that a step can be captured.

torchmetrics would count over batches, which Lightning's means already do, and read the labels' values on the host.
"""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

REVISION = 1  # raise it when a change alters the loss or a metric

Logits = Float[Tensor, "b k"] | Float[Tensor, "b l k"]
Labels = Int[Tensor, " b"] | Int[Tensor, "b l"]


class Classification:
    """Cross entropy; `error` in percent.

    With labels (B, L) and logits (B, L, K) an example is a sequence of L classes.  Its loss is their sum, and it is
    right only if all of them are (A.5).
    """

    data: tuple[str, ...] = ()  # the only data sets that it fits; empty: all whose batches are images and labels

    def prepare(self, data: Any) -> None:
        """Does nothing."""

    def checksums(self) -> dict[str, str]:
        """None: the loss reads no file."""
        return {}

    def loss(self, network: nn.Module, batch: tuple[Tensor, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        u, label = batch
        logits = network(u)
        return cross_entropy(logits, label), {"error": error(logits, label)}

    def test(self, network: nn.Module, batch: tuple[Tensor, Any]) -> dict[str, Tensor]:
        u, label = batch
        return {"error": error(network(u), label)}

    def after_test(self) -> dict[str, float]:
        """None."""
        return {}


def cross_entropy(logits: Logits, label: Labels) -> Float[Tensor, ""]:
    """The mean over examples of the sum over an example's labels."""
    if label.dim() == 1:
        return F.cross_entropy(logits, label)
    return label.shape[1] * F.cross_entropy(logits.flatten(0, 1), label.flatten())


def error(logits: Logits, label: Labels) -> Float[Tensor, ""]:
    """Percentage of the examples with any wrong label."""
    wrong = logits.detach().argmax(-1) != label
    return 100 * wrong.view(len(label), -1).any(1).float().mean()
