"""A classifier's answers in the test: the true and the predicted class of every image, and its worst images."""

from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stn.experiments import draw

WORST, SIDE_PX = 16, 112


def labels_of(target: Any) -> Tensor | None:
    """The classes in a test batch's target; None if it has none, as in co-localisation."""
    labels = target.get("label") if isinstance(target, dict) else target
    return None if labels is None or labels.is_floating_point() else labels


def names(classes: Tensor) -> list[str]:
    """Each class or house number as text."""
    if classes.dim() > 1:
        from stn.experiments.datasets.svhn import text  # needs packages that nothing else here needs

    return [str(each.item()) if each.dim() == 0 else text(each) for each in classes]


class Wrong(NamedTuple):
    """An image with a high loss, and its caption."""

    loss: float
    image: Tensor
    text: str

    def picture(self) -> Image.Image:
        return (draw.tile if self.image.dim() == 3 else draw.volume_tile)(self.image, SIDE_PX)


class Answers(pl.Callback):
    """Collects in the test the true and the predicted classes, and the WORST images by loss, the worst first."""

    def __init__(self) -> None:
        self.truth: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.worst: list[Wrong] = []

    def on_test_start(self, trainer, module) -> None:
        self.hook = module.register_forward_hook(self.remember)

    def remember(self, module, inputs, logits) -> None:
        self.logits = logits

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        u, target = batch
        if (labels := labels_of(target)) is None:
            return
        likely, predicted = self.logits.softmax(-1).max(-1)
        self.truth.append(labels.cpu())
        self.predicted.append(predicted.cpu())
        losses = F.cross_entropy(self.logits.flatten(0, -2), labels.flatten(), reduction="none")
        losses, likely = losses.view(len(u), -1).sum(1), likely.view(len(u), -1).prod(1)
        worst = losses.topk(min(WORST, len(u))).indices.cpu()
        said, right = names(predicted[worst].cpu()), names(labels[worst].cpu())
        found = [
            Wrong(losses[i].item(), u[i].cpu(), f"{p} ({100 * likely[i]:.0f} %)" + (f", not {t}" if p != t else ""))
            for i, p, t in zip(worst, said, right, strict=True)
        ]
        self.worst = sorted(self.worst + found, key=lambda one: -one.loss)[:WORST]

    def on_test_end(self, trainer, module) -> None:
        self.hook.remove()

    def classes(self) -> tuple[list[int], list[int]] | None:
        """The true and the predicted class of every image; None if images have several or none."""
        if not self.truth or self.truth[0].dim() > 1:
            return None
        return torch.cat(self.truth).tolist(), torch.cat(self.predicted).tolist()
