"""The LightningModule of every experiment: blocks of steps.

For networks of this size a trainer's overhead per step takes longer than the step.  One Lightning epoch is therefore a
block of `schedule.block_steps` steps in a plain loop, with data made on the device.  Everything else of Lightning
(checkpoints, callbacks, loggers, devices) works as usual, once per block.  The exceptions are ModelCheckpoint and
WeightAveraging, which count Lightning's own steps, and here it takes none: validation.py and PyTorch's AveragedModel
replace them.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stn.experiments.training.capture import Captured
from stn.experiments.training.clock import Clock
from stn.experiments.training.schedule import Schedule, sets_rates_alone, takes_rate_from_device
from stn.experiments.training.step import Objective, step


@runtime_checkable
class Batches(Protocol):
    """The interface of a data set: training batches drawn with a generator, and the test set in batches.

    Test batches are on the CPU, or where `to` has moved the data.  `labelled` says whether batches are images and
    labels, which any objective takes that names no data set; `synthetic` whether the data were generated instead of
    collected; `on_device` whether a batch is drawn without the host, so that a step can be captured.  A network is
    built for `in_shape` and `classes`.

    Before a run two functions of the class take the settings of its constructor: `shape` checks their values and
    returns `in_shape` without reading a file; `ensure`, which takes `root` first, fetches or finds the files.
    """

    classes: int
    labelled: bool
    synthetic: bool
    on_device: bool

    @property
    def in_shape(self) -> tuple[int, ...]: ...
    def to(self, device: torch.device) -> None: ...
    def batch(self, n: int, generator: Generator) -> tuple[Tensor, Any]: ...
    def test_batches(self) -> Iterable[tuple[Tensor, Any]]: ...
    def checksums(self) -> dict[str, str]: ...
    @staticmethod
    def shape(*args: Any, **settings: Any) -> tuple[int, ...]: ...
    @staticmethod
    def ensure(*args: Any, **settings: Any) -> None: ...


class Diverged(ArithmeticError):
    """A loss, a weight or an output is NaN or infinite at `step` (from 0)."""

    def __init__(self, step: int, value: float, what: str = "the loss"):
        super().__init__(step, value, what)  # its own arguments, so that a launcher's worker can pickle it
        self.step = step

    def __str__(self) -> str:
        _, value, what = self.args
        return f"{what} became {value} at step {self.step}: lower optimizer.lr or schedule.localisation_lr"


def on_gpu(device: torch.device) -> bool:
    """Whether a device can capture and replay a step."""
    return device.type == "cuda"


def block_seed(seed: int, block: int) -> int:
    """The seed of all randomness in one block, from (seed, block) alone, so that a resumed run draws the same."""
    digest = hashlib.sha256(f"{seed},{block}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


class Replicas(DDPStrategy):
    """One process per device, each with the same weights; the engine averages their gradients in every step.

    Lightning's own wrapper expects one backward pass per training_step, but a block has many.
    """

    def configure_ddp(self) -> None:
        pass


def average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one exchange."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


class Training(pl.LightningModule):
    """A network, its data, an objective and a schedule; all randomness of training derives from the seed.

    Lightning's epoch e is the block of steps [e block_steps, (e + 1) block_steps).  Of several processes, each draws
    the whole batch and takes its share.  A share is processed in `accumulate` parts, whose gradients are averaged.
    `precision` is fp32, or bf16 for the network under autocast.

    On a GPU a step is captured as a CUDA graph, unless `capture` is false.  This requires that batches are drawn on the
    device, that one process trains, and that only the learning rate changes between steps, which the optimiser reads
    from a tensor.  With `compile` the network is compiled for training; tests and pictures use it uncompiled.
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
        capture: bool = True,
        compile: bool = False,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        for p in network.parameters():
            if p.dim() == 4:  # not for the convolutions of volumes
                p.data = p.data.to(memory_format=torch.channels_last)
        ema = schedule.ema
        self.averaged = None if ema is None else AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema))
        self.compiled = torch.compile(network.forward) if compile else None
        self.data = data
        self.objective = objective
        self.schedule = schedule
        self.seed = seed
        self.precision = precision
        self.accumulate = accumulate
        self.capture = capture
        self.captured: Captured | None = None
        self.curve: list[dict[str, float]] = []  # one entry per block, part of the checkpoint and of the record
        self.done = 0  # steps, for the bar
        self.test_images = 0  # that the test has seen
        self.clock = Clock()  # of the training steps, over all resumes
        self.where: dict[str, Any] = {}  # commit, device, ... of this process
        self.sessions: list[dict[str, Any]] = []  # one entry per process: `where`, and its steps `from` and `to`
        self.session: dict[str, Any] = {}  # the entry of this process, once it has trained

    def configure_optimizers(self) -> Any:
        optimizers = self.schedule.optimizers(self.network)
        return optimizers, self.schedule.schedulers(optimizers)

    @property
    def tested(self) -> nn.Module:
        """The network that is tested and kept: with averaged weights if the schedule asks for them."""
        return self.network if self.averaged is None else self.averaged.module

    def forward(self, u: Tensor) -> Tensor:
        network = (self.compiled or self.network) if self.training else self.tested
        # autocast per call, not per block: it caches bf16 copies of the weights until it exits
        with torch.autocast(u.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = network(u).float()
        if not self.training:  # otherwise an argmax would turn NaN into 90 % error, unnoticed
            self.check({"the output in the test": output}, self.schedule.steps - 1)
        return output

    def check(self, values: dict[str, Tensor], step: int) -> None:
        """Raise Diverged if one of the tensors holds NaN or infinity."""
        finite = torch.stack([value.isfinite().all() for value in values.values()])
        if not finite.all():  # the only wait for the device
            what, value = list(values.items())[int((~finite).nonzero()[0])]
            raise Diverged(step, value[~value.isfinite()][0].item(), what)

    def on_fit_start(self) -> None:
        self.data.to(self.device)
        self.objective.prepare(self.data)

    def on_train_start(self) -> None:
        # after a resume, too: Lightning moves an optimiser's state to the GPU, but not its learning rates
        for optimizer in self.trainer.optimizers if on_gpu(self.device) else ():
            for group in optimizer.param_groups if takes_rate_from_device(optimizer) else ():
                group["lr"] = torch.tensor(float(group["lr"]), device=self.device)

    def train_dataloader(self) -> Iterable[int]:
        return range(1)  # one "batch" per epoch: the block

    def taker(self, generator: Generator) -> Callable[[], dict[str, Tensor]]:
        """The function that takes one step with batches drawn by a generator."""
        optimizers, bounds = self.trainer.optimizers, self.schedule.bounds(self.network)
        share = (self.global_rank, self.trainer.world_size)
        exchange = average if self.trainer.world_size > 1 else None

        def draw(generator: Generator) -> tuple[Tensor, Any]:
            return self.data.batch(self.schedule.batch_size, generator)

        return lambda: step(self, self.objective, draw, generator, optimizers, bounds, self.accumulate, share, exchange)

    @property
    def replays(self) -> bool:
        """Whether a step is captured: on a GPU, with everything that it needs on the device, in a single process."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        rates = all(map(takes_rate_from_device, self.trainer.optimizers)) and all(map(sets_rates_alone, schedulers))
        return self.capture and rates and self.trainer.world_size == 1 and self.data.on_device and on_gpu(self.device)

    def steps_of(self, block: int) -> Callable[[], dict[str, Tensor]]:
        """The function that takes a step of a block; on a GPU one graph serves all blocks."""
        seed = block_seed(self.seed, block)
        torch.manual_seed(seed + self.global_rank)  # for dropout, which takes no generator
        if not self.replays:
            return self.taker(Generator(self.device).manual_seed(seed))
        if self.captured is None:
            generator = Generator(self.device)
            self.captured = Captured(self.taker(generator), generator, self.trainer.optimizers)
        self.captured.generator.manual_seed(seed)
        return self.captured

    def training_step(self, batch: int, batch_idx: int) -> None:
        first = self.current_epoch * self.schedule.block_steps
        last = min(first + self.schedule.block_steps, self.schedule.steps)
        lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        if not self.session:
            self.session = self.where | {"from": first, "to": first}
            self.sessions.append(self.session)
        with self.clock:
            curve = self.take_steps(last - first)
            loss = curve["train/loss"]
            if not loss.isfinite().all():
                bad = int((~loss.isfinite()).nonzero()[0])
                raise Diverged(first + bad, loss[bad].item())
        # checked before a checkpoint is written, and because no loss follows the last step
        self.check({f"the weights {key}": value for key, value in self.network.state_dict().items()}, last - 1)
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.session["to"] = last
        self.curve.append({"step": last, **{name: block.mean().item() for name, block in curve.items()}, "lr": lr})

    def take_steps(self, n: int) -> dict[str, Tensor]:
        """Take n steps of the current block; return what each reported, on the device."""
        take = self.steps_of(self.current_epoch)
        values: dict[str, Tensor] = {}
        for i in range(n):
            for name, value in take().items():
                values.setdefault(f"train/{name}", value.new_empty(n))[i] = value
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.step()  # type: ignore[call-arg]  # none of them waits for a metric
            self.clock.tick()
            self.done += 1
        if self.trainer.world_size > 1:
            average(list(values.values()))
        return values

    def test_dataloader(self) -> Iterable[tuple[Tensor, Any]]:
        return self.data.test_batches()

    def on_test_start(self) -> None:
        self.test_images = 0

    def test_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> None:
        self.test_images += len(batch[0])
        for name, value in self.objective.test(self, batch).items():
            self.log(f"test/{name}", value, batch_size=len(batch[0]), logger=False)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.objective.after_test().items()}, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"], checkpoint["sessions"] = self.curve, self.sessions
        checkpoint["seconds"], checkpoint["core_seconds"] = self.clock.seconds, self.clock.core_seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve, self.sessions = checkpoint["curve"], checkpoint.get("sessions", [])
        # older checkpoints have neither sessions nor core_seconds
        self.clock.seconds, self.clock.core_seconds = checkpoint["seconds"], checkpoint.get("core_seconds", 0.0)
