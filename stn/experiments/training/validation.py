"""The error on validation data during training, and the weights with the lowest error."""

from collections import defaultdict
from pathlib import Path

import pytorch_lightning as pl
import torch
from safetensors.torch import save
from torch import nn

from stn.experiments.results import records


def due(times: int, block: int, blocks: int) -> bool:
    """Whether one of `times` events, spread evenly over the blocks up to the last, comes after this block (from 0)."""
    return (block + 1) * times // blocks > block * times // blocks


def weights(network: nn.Module, run: str) -> bytes:
    """A network's weights in the safetensors format, with the run's id."""
    return save({name: value.contiguous() for name, value in network.state_dict().items()}, metadata={"id": run})


class Validation(pl.Callback):
    """Adds `valid/...` to the curve `times` times, evenly over training, and writes the best weights to `path`.

    It does not touch the random numbers of training, which stays the same bit for bit.
    """

    def __init__(self, times: int, path: Path):
        self.times = times
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not (trainer.is_global_zero and due(self.times, module.current_epoch, module.schedule.blocks)):
            return
        module.curve[-1] |= {f"valid/{name}": value for name, value in measure(module).items()}
        errors = [entry["valid/error"] for entry in module.curve if "valid/error" in entry]
        if errors[-1] == min(errors):
            records.replace(self.path, weights(module.tested, self.path.parent.name))


def measure(module) -> dict[str, float]:
    """The test metrics over `module.data.test_batches`, in eval mode."""
    sums: dict[str, float] = defaultdict(float)
    images = 0
    module.eval()
    with torch.no_grad():
        for batch in module.data.test_batches():
            there = module.transfer_batch_to_device(batch, module.device, 0)
            for name, value in module.objective.test(module, there).items():
                sums[name] += value.item() * len(batch[0])
            images += len(batch[0])
    module.train()
    return {name: total / images for name, total in sums.items()} | module.objective.after_test()
