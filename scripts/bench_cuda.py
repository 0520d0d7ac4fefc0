"""The parts of `bench.py` that need a GPU: every row's step, the distortions, several runs on one card."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # PyTorch documents it under this name alone
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from stn.experiments import build
from stn.experiments.command import ROOT
from stn.experiments.figures import distorted_mnist
from stn.experiments.training.capture import Captured
from stn.experiments.training.environment import pick_precision
from stn.experiments.training.job import schedule_of
from stn.experiments.training.schedule import takes_rate_from_device
from stn.experiments.training.step import step

TIME_S = 1.0  # length of one measurement
FIRST = 10  # steps of a Trainer before it is timed
ON_DEVICE = ("mnist", "addition", "voxel", "coloc")  # prefixes of the experiments whose batches need no host
NONE = "PyTorch sees no CUDA device: parts h, i and j of the bench are skipped"
Step = Callable[[], dict[str, Tensor]]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def per_second(take: Callable[[], object], device: torch.device, time_s: float = TIME_S) -> float:
    """Calls per second, measured over about `time_s` after a few warm-up calls."""
    for _ in range(5):  # a captured step is recorded in the fourth call
        take()
    wait(device)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < time_s:
        for _ in range(10):
            take()
        wait(device)
        count += 10
    return count / (time.perf_counter() - start)


def config_of(experiment: str, *words: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg: Any = compose(
            "config", [f"experiment={experiment}", "experiment_name=bench", "schedule_name=bench", *words]
        )
        resolved: Any = OmegaConf.to_container(cfg, resolve=True)
        return resolved


class Row:
    """The step of an experiment under a schedule, as the engine takes it, without Lightning."""

    def __init__(self, experiment: str, schedule: str, device: torch.device, *words: str):
        config = config_of(experiment, f"schedule={schedule}", *words)
        torch.manual_seed(0)
        self.device = device
        self.data = build.data_set(config["data"], ROOT / "data")
        network = build.network(config["model"], self.data.in_shape, self.data.classes).to(device)
        for p in network.parameters():
            if p.dim() == 4:
                p.data = p.data.to(memory_format=torch.channels_last)
        self.precision = pick_precision("auto", network, device)
        self.objective = build.objective(
            config["objective"], precision=self.precision, runs=ROOT / "runs", data_root=ROOT / "data"
        )
        self.data.to(device)
        self.objective.prepare(self.data)
        self.schedule = schedule_of(config)
        self.network = network
        self.module = Autocast(network, self.precision)
        self.optimizers = self.schedule.optimizers(network)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups if device.type == "cuda" and takes_rate_from_device(optimizer) else ():
                group["lr"] = torch.tensor(float(group["lr"]), device=device)
        self.generator = Generator(device).manual_seed(0)

    def draw(self, generator: Generator) -> Any:
        return self.data.batch(self.schedule.batch_size, generator)

    def take(self) -> dict[str, Tensor]:
        bounds = self.schedule.bounds(self.network)
        return step(self.module, self.objective, self.draw, self.generator, self.optimizers, bounds)


class Autocast(nn.Module):
    """A network in the precision of its run, as the engine calls it."""

    def __init__(self, network: nn.Module, precision: str):
        super().__init__()
        self.network, self.bf16 = network, precision == "bf16"

    def forward(self, u: Tensor) -> Tensor:
        with torch.autocast(u.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(u).float()


class Traffic(TorchDispatchMode):
    """Counts the bytes that every operation reads and writes: the memory traffic without any cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.bytes += sum(t.nbytes for t in tensors([args, list((kwargs or {}).values()), out]))
        return out


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation, also inside lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


def work_of(take: Step) -> tuple[int, int]:
    """FLOPs and bytes of one step."""
    take()
    with Traffic() as traffic, FlopCounterMode(display=False) as flops:
        take()
    return flops.get_total_flops(), traffic.bytes


def gemm_rate(dtype: torch.dtype, device: torch.device, n: int) -> float:
    """FLOP/s of an n x n x n matrix product."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 * per_second(lambda: a @ b, device)


def bandwidth(device: torch.device, n_bytes: int) -> float:
    """Bytes per second that a copy reads and writes."""
    a = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * n_bytes * per_second(lambda: b.copy_(a), device)


class UsualWay(pl.LightningModule):
    """The way of the tutorials: one training_step per batch, the loss logged."""

    def __init__(self, network: nn.Module, objective: Any):
        super().__init__()
        self.network, self.objective = network, objective

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, _ = self.objective.loss(self.network, batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss


class AfterTheFirst(pl.Callback):
    """Starts the clock after the first steps."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST:
            wait(module.device)
            self.start = time.perf_counter()


def usual_rate(row: Row, steps: int) -> float | None:
    """Steps/s of a Trainer over a DataLoader of finished images, without the cost of distortion: an upper bound."""
    u, label = row.draw(row.generator)
    if len(u) < 32 or u.dim() != 4:  # volumes do not fit, and co-localisation needs all images in each batch
        return None
    times = steps + FIRST
    images = TensorDataset(u.cpu().repeat(times, 1, 1, 1), label.cpu().repeat(times))
    loader = DataLoader(images, batch_size=len(u), shuffle=True)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        accelerator="gpu" if row.device.type == "cuda" else "cpu", devices=1, callbacks=[clock := AfterTheFirst()],
    )  # fmt: skip
    trainer.fit(UsualWay(row.network, row.objective), loader)
    wait(row.device)
    return steps / (time.perf_counter() - clock.start)


def rows() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Experiment, schedule and further overrides of each row: every experiment whose batches need no host."""
    for file in sorted((ROOT / "conf/experiment").glob("*.yaml")):
        first = file.stem.split("_")[0]
        if first in ON_DEVICE:
            schedule = {"voxel": "fast_3d", "coloc": "colocalisation"}.get(first, "paper")
            yield file.stem, schedule, ("data/distortion=rts",) if first == "mnist" else ()


def bench_steps(device: torch.device, only: tuple[str, ...] = (), n: int = 8192, *words: str) -> None:
    rates = {precision: gemm_rate(dtype, device, n) for precision, dtype in
             (("fp32", torch.float32), ("bf16", torch.bfloat16))}  # fmt: skip
    moved = bandwidth(device, n * n * 8)
    print(f"\n(h) steps/s under each row's schedule; GEMM {rates['fp32'] / 1e12:.1f} TFLOP/s in fp32, "
          f"{rates['bf16'] / 1e12:.1f} in bf16, {moved / 1e9:.0f} GB/s")  # fmt: skip
    print("    floor: the larger of FLOPs / GEMM rate and bytes / bandwidth; gap: captured step / floor")
    print("    row                         batch precision captured    plain Lightning  GFLOP     MB  floor ms     gap")
    for experiment, schedule, more in rows():
        if only and experiment not in only:
            continue
        row = Row(experiment, schedule, device, *more, *words)
        flops, traffic = work_of(row.take)
        plain = per_second(row.take, device)
        captured = None
        if device.type == "cuda":
            captured = per_second(Captured(row.take, row.generator, row.optimizers), device)
        usual = usual_rate(row, steps=max(20, int(TIME_S * 100)))
        floor_s = max(flops / rates[row.precision], traffic / moved)
        print(f"    {experiment:28s}{row.schedule.batch_size:5d} {row.precision:9s} {_rate(captured)} {_rate(plain)} "
              f"{_rate(usual)} {flops / 1e9:6.1f} {traffic / 1e6:6.0f} {1e3 * floor_s:9.3f} "
              f"{1 / (captured or plain) / floor_s:7.1f}", flush=True)  # fmt: skip


def _rate(value: float | None) -> str:
    return f"{value:9.0f}" if value else "        -"


def bench_distortions(device: torch.device, n: int = 4096) -> None:
    print(f"\n(i) distortions, batches of {n}: images/s; through a graph")
    index = torch.arange(n, device=device)
    for name in ("r", "rts", "p", "e", "tc"):
        data = distorted_mnist(name)
        digits, generator = data.digits.to(device), Generator(device).manual_seed(0)
        apply = partial(data.distortion.apply, digits, index % len(digits), generator)
        plain = n * per_second(apply, device)
        graph = None
        if device.type == "cuda":
            graph = n * per_second(Captured(partial(_named, apply), generator), device)
        print(f"    {name.upper():34s} {plain:14,.0f} {graph or 0:14,.0f}", flush=True)


def _named(apply: Callable[[], Tensor]) -> dict[str, Tensor]:
    return {"u": apply()}


def measure_alone(experiment: str, time_s: float) -> None:
    """Print the steps/s of one row, captured: the task of one process of `bench_together`."""
    device = torch.device("cuda", 0)
    row = Row(experiment, "paper", device)
    take = Captured(row.take, row.generator, row.optimizers)
    per_second(take, device, 1.0)
    print("ready", flush=True)
    sys.stdin.readline()  # all start together
    print(per_second(take, device, time_s), flush=True)


def bench_together(device: torch.device, time_s: float = 5.0) -> None:
    """Several processes on one card: how the total rate grows with their number."""
    print("\n(j) several runs on one card, each its own process: total steps/s")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for experiment in ("mnist_st_fcn_affine", "mnist_st_cnn_affine"):
        said = []
        for count in (1, 2, 4, 8):
            code = f"import bench_cuda; bench_cuda.measure_alone({experiment!r}, {time_s})"
            some = [
                subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "scripts", env=environment, text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                for _ in range(count)
            ]  # fmt: skip
            try:
                for process in some:
                    assert process.stdout is not None
                    if process.stdout.readline().strip() != "ready":
                        raise ValueError(f"a process of part j failed at its start ({experiment}, {count} at once)")
                for process in some:
                    assert process.stdin is not None
                    process.stdin.write("go\n")
                    process.stdin.flush()
                outs = [process.communicate()[0] for process in some]
            finally:
                for process in some:
                    process.kill()
            said.append(f"{count}: {sum(float(out) for out in outs):,.0f}")
        print(f"    {experiment:28s} {'   '.join(said)}", flush=True)


def parts() -> dict[str, Callable[[], None]]:
    """The parts by letter; without a GPU each prints that it is skipped."""
    if not torch.cuda.is_available():
        return {"h": lambda: print(f"\n{NONE}"), "i": lambda: None, "j": lambda: None}
    device = torch.device("cuda", torch.cuda.current_device())
    made: dict[str, Any] = {"h": bench_steps, "i": bench_distortions, "j": bench_together}
    return {letter: partial(part, device) for letter, part in made.items()}
