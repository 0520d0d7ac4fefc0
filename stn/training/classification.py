"""The LightningModule of every classification experiment, and its step engine.

For networks of this size a trainer's work per step costs more than the step.  One Lightning epoch is therefore a block
of `schedule.block_steps` SGD steps in a plain loop, with data that is made on the device; everything else of Lightning
(checkpoints, callbacks, loggers, devices) works as usual, once per block.
"""

import hashlib
import time
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stn.training.schedule import Schedule


@runtime_checkable
class Batches(Protocol):
    """What a data set has to offer to be trained on."""

    classes: int
    test: TensorDataset  # uint8 images and labels

    @property
    def in_shape(self) -> tuple[int, ...]: ...
    def to(self, device: torch.device) -> None: ...
    def batch(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]: ...


class Diverged(ArithmeticError):
    """A loss that is no number, at `step` (from 0)."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"the loss became {loss} at step {step}: lower schedule.lr or schedule.localisation_lr")
        self.step = step


def block_generator(seed: int, block: int, device: torch.device) -> Generator:
    """All randomness of one block, from (seed, block) alone, so that a resumed run draws what the first would have."""
    digest = hashlib.sha256(f"{seed},{block}".encode()).digest()
    return Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


class Classification(pl.LightningModule):
    """Cross entropy on freshly drawn batches; `test/error` in percent on the frozen test set.

    Lightning's epoch e is the block of steps [e block_steps, (e + 1) block_steps).
    """

    def __init__(self, network: nn.Module, data: Batches, schedule: Schedule, seed: int, precision: str):
        super().__init__()
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision={precision!r}: choose fp32 or bf16")
        self.automatic_optimization = False
        self.network = network.to(memory_format=torch.channels_last)
        self.data = data
        self.schedule = schedule
        self.seed = seed
        self.bf16 = precision == "bf16"
        self.curve: list[dict[str, float]] = []  # one entry per block, part of the checkpoint and of the record
        self.seconds = 0.0  # spent in training steps, over all resumes

    def configure_optimizers(self) -> Any:
        optimizer = self.schedule.optimizer(self.network)
        return {"optimizer": optimizer, "lr_scheduler": self.schedule.scheduler(optimizer)}

    def forward(self, u: Tensor) -> Tensor:
        # autocast per call, not per block: it caches the bf16 copies of the weights until it is left
        with torch.autocast(u.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(u).float()

    def on_fit_start(self) -> None:
        self.data.to(self.device)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(1), batch_size=None)  # type: ignore[arg-type]  # one "batch" an epoch: the block

    def training_step(self, batch: int, batch_idx: int) -> None:
        start = time.perf_counter()
        generator = block_generator(self.seed, self.current_epoch, self.device)
        # the raw optimizer: Lightning's wrapper costs as much as a small network's step
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        first = self.current_epoch * self.schedule.block_steps
        last = min(first + self.schedule.block_steps, self.schedule.steps)
        lr = optimizer.param_groups[0]["lr"]
        parameters = list(self.network.parameters())
        losses, wrong = [], torch.zeros((), device=self.device)
        for _ in range(first, last):
            u, label = self.data.batch(self.schedule.batch_size, generator)
            logits = self(u)
            loss = F.cross_entropy(logits, label)
            optimizer.zero_grad()
            loss.backward()
            if self.schedule.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.schedule.clip_norm)
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
            wrong += (logits.detach().argmax(1) != label).sum()
        loss = torch.stack(losses)
        if not loss.isfinite().all():
            bad = int((~loss.isfinite()).nonzero()[0])
            raise Diverged(first + bad, loss[bad].item())
        self.seconds += time.perf_counter() - start
        error = 100 * wrong.item() / (len(losses) * self.schedule.batch_size)
        self.curve.append({"step": last, "train/loss": loss.mean().item(), "train/error": error, "lr": lr})

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.data.test, batch_size=1000)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        u, label = batch
        wrong = (self(u[:, None].float() / 255).argmax(1) != label).float()
        self.log("test/error", 100 * wrong.mean(), batch_size=len(label), logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"], checkpoint["seconds"] = self.curve, self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve, self.seconds = checkpoint["curve"], checkpoint["seconds"]
