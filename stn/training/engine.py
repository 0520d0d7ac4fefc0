"""The LightningModule of every experiment, and its step engine.

For networks of this size a trainer's work per step costs more than the step.  One Lightning epoch is therefore a block
of `schedule.block_steps` SGD steps in a plain loop, with data that is made on the device; everything else of Lightning
(checkpoints, callbacks, loggers, devices) works as usual, once per block.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from stn.training.schedule import Schedule


@runtime_checkable
class Batches(Protocol):
    """What a data set has to offer: training batches that a generator draws, and the test set in batches, on the CPU.

    `made` says that the data were generated, not collected; `in_shape` and `classes` are what a network is built for.
    """

    classes: int
    made: bool

    @property
    def in_shape(self) -> tuple[int, ...]: ...
    def to(self, device: torch.device) -> None: ...
    def batch(self, n: int, generator: Generator) -> tuple[Tensor, Any]: ...
    def test_batches(self) -> Iterable[tuple[Tensor, Any]]: ...
    def checksums(self) -> dict[str, str]: ...


@runtime_checkable
class Objective(Protocol):
    """What is minimised and what is reported.  `network` is the module below, which adds autocast to its network.

    `loss` returns the loss of one training batch and, in the units of the record, what else is worth a curve; `test`
    the metrics of one test batch, which are averaged over the test set.  A `prepare(data)`, where there is one, is
    called before the first step, with the data on their device.
    """

    def loss(self, network: nn.Module, batch: tuple[Tensor, Any]) -> tuple[Tensor, dict[str, Tensor]]: ...
    def test(self, network: nn.Module, batch: tuple[Tensor, Any]) -> dict[str, Tensor]: ...


class Diverged(ArithmeticError):
    """A loss that is no number, at `step` (from 0)."""

    def __init__(self, step: int, loss: float):
        super().__init__(step, loss)  # its own arguments, so that it can be pickled: a launcher's worker hands it back
        self.step = step

    def __str__(self) -> str:
        return f"the loss became {self.args[1]} at step {self.step}: lower schedule.lr or schedule.localisation_lr"


def block_generator(seed: int, block: int, device: torch.device) -> Generator:
    """All randomness of one block, from (seed, block) alone, so that a resumed run draws what the first would have."""
    digest = hashlib.sha256(f"{seed},{block}".encode()).digest()
    return Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


class Replicas(DDPStrategy):
    """One process per device, each with the same weights; the engine averages their gradients, once a step.

    Lightning's own wrapper expects one backward pass per training_step, and a block has many.
    """

    def configure_ddp(self) -> None:
        pass


def parts(batch: tuple[Tensor, Any], n: int) -> list[tuple[Tensor, Any]]:
    """A batch in n equal parts; the labels have to be one tensor then."""
    return [batch] if n == 1 else list(zip(*(values.chunk(n) for values in batch), strict=True))


def average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one exchange."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


class Training(pl.LightningModule):
    """A network, its data, an objective and a schedule; all randomness of training derives from the seed.

    Lightning's epoch e is the block of steps [e block_steps, (e + 1) block_steps).  With several processes each draws
    the whole batch and takes its share; a share is worked on in `accumulate` parts, whose gradients are averaged.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Batches,
        objective: Objective,
        schedule: Schedule,
        seed: int,
        precision: str,
        accumulate: int = 1,
    ):
        super().__init__()
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision={precision!r}: choose fp32 or bf16")
        self.automatic_optimization = False
        self.network = network
        for p in network.parameters():
            if p.dim() == 4:  # a volume's convolutions have no such format
                p.data = p.data.to(memory_format=torch.channels_last)
        self.data = data
        self.objective = objective
        self.schedule = schedule
        self.seed = seed
        self.bf16 = precision == "bf16"
        self.accumulate = accumulate
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
        if prepare := getattr(self.objective, "prepare", None):
            prepare(self.data)

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
        parameters, bounds = list(self.network.parameters()), self.schedule.clipped(self.network)
        values = defaultdict(list)
        processes, rank = self.trainer.world_size, self.global_rank
        torch.manual_seed(generator.initial_seed() + rank)  # of dropout, which takes no generator
        for _ in range(first, last):
            micro = parts(self.data.batch(self.schedule.batch_size, generator), processes * self.accumulate)
            optimizer.zero_grad()
            for part in micro[rank * self.accumulate : (rank + 1) * self.accumulate]:
                loss, also = self.objective.loss(self, part)
                (loss / self.accumulate).backward()
                for name, value in {"loss": loss, **also}.items():
                    values[name].append(value.detach())
            if processes > 1:
                average([p.grad for p in parameters if p.grad is not None])
            for clipped, norm in bounds:
                nn.utils.clip_grad_norm_(clipped, norm)
            optimizer.step()
            scheduler.step()
        curve = {
            f"train/{name}": torch.stack(block).unflatten(0, (last - first, self.accumulate)).mean(1)
            for name, block in values.items()
        }
        if processes > 1:
            average(list(curve.values()))
        loss = curve["train/loss"]
        if not loss.isfinite().all():
            bad = int((~loss.isfinite()).nonzero()[0])
            raise Diverged(first + bad, loss[bad].item())
        self.seconds += time.perf_counter() - start
        self.curve.append({"step": last, **{name: block.mean().item() for name, block in curve.items()}, "lr": lr})

    def test_dataloader(self) -> Iterable[tuple[Tensor, Any]]:
        return self.data.test_batches()

    def test_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> None:
        for name, value in self.objective.test(self, batch).items():
            self.log(f"test/{name}", value, batch_size=len(batch[0]), logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"], checkpoint["seconds"] = self.curve, self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve, self.seconds = checkpoint["curve"], checkpoint["seconds"]
