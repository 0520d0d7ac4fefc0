"""Measure speed, each part against the usual way of doing it, side by side on this machine: medians of several rounds.

(a) distortions against albumentations, one thread each
(b) training steps of the FCN: the engine against one Trainer call a step
(c) ST-CNN Aff against a plain fp32 loop
(d) the CNN's step: its FLOP/s as a share of the machine's GEMM rate
(e) the time that the spatial transformer adds to its CNN
(f) Table 2 at full width: ST-CNN Single and Multi against their CNN (the paper's Multi is 6 % slower)
(g) Table 5: a step of several cells in turn against one step of all of them as one batch
(k) grid, warp and gradient of every transform against PyTorch's and kornia's functions
On a GPU only:
(h) every row's step: captured, eager and in the usual Lightning loop, beside the limits of GEMM rate and bandwidth
(i) images/s of the distortions
(j) steps/s of 1, 2, 4 and 8 runs at once on one card
"""

import copy
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise it contacts a registry at import

import bench_cuda
import cv2
import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from bench_peers import bench_transforms
from omegaconf import OmegaConf
from timing import side_by_side, turns
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from stn import Affine, SpatialTransformer
from stn.experiments import build
from stn.experiments.command import ROOT, Options, run
from stn.experiments.datasets.mnist import DistortedMnist
from stn.experiments.figures import distorted_mnist
from stn.experiments.networks.sizing import num_params
from stn.experiments.training.classification import Classification, cross_entropy
from stn.experiments.training.colocalisation import TripletHinge, triplet_hinge
from stn.experiments.training.engine import Training
from stn.experiments.training.environment import describe, fast_bf16
from stn.experiments.training.schedule import Schedule

if TYPE_CHECKING:
    import albumentations as A

HAVE_ALBUMENTATIONS = find_spec("albumentations") is not None  # not on a machine set up by scripts/bundle.py
LACKING = "albumentations is not installed: its comparisons are skipped"

CPU = torch.device("cpu")
CONFIG = OmegaConf.load(ROOT / "conf/config.yaml")
BATCH = 256  # the paper's
BF16 = fast_bf16(CPU)  # whether `precision=auto` picks it for networks with convolutions
PRECISION = "bf16" if BF16 else "fp32"


def group(name: str, **changed: Any) -> dict[str, Any]:
    """The values of a file of conf/, some of them changed, without `defaults`, which only Hydra reads."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/{name}.yaml"))
    return {key: value for key, value in settings.items() if key != "defaults"} | changed


def mnist(data: DistortedMnist, **parts: Any) -> Any:
    """A network of Table 1 with the widths of the paper."""
    return build.network(group("model/mnist", budget=None, **parts), data.in_shape, data.classes)


def albumentations_pipeline(name: str) -> "A.Compose":
    """The closest pipeline that albumentations offers, on one 28 x 28 image at a time."""
    import albumentations as A

    linear = {"interpolation": cv2.INTER_LINEAR, "fill": 0, "p": 1.0}
    pad = A.PadIfNeeded(42, 42, border_mode=cv2.BORDER_CONSTANT, fill=0)
    steps = {
        "r": [A.Affine(rotate=(-90, 90), **linear)],
        "rts": [pad, A.Affine(rotate=(-45, 45), scale=(0.7, 1.2), translate_px=(-7, 7), **linear)],
        "p": [A.Affine(scale=(0.75, 1.0), **linear), A.Perspective(scale=(0.05, 0.18), keep_size=True, **linear)],
        "e": [
            A.Affine(scale=(0.75, 1.0), **linear),
            A.ThinPlateSpline(scale_range=(0.05, 0.05), num_control_points=4, **linear),
        ],
    }
    return A.Compose(steps[name])


def one_by_one(pipeline: "A.Compose", images: list[np.ndarray]) -> np.ndarray:
    return np.stack([pipeline(image=image)["image"] for image in images])


def bench_distortions() -> None:
    digits = distorted_mnist("r").digits
    index = torch.arange(BATCH)
    images = [image.numpy()[:, :, None] for image in digits[:BATCH]]
    generator = Generator().manual_seed(0)
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if not HAVE_ALBUMENTATIONS:
        print(f"\n{LACKING}")
    print("\n(a) distortions, one thread            images/s    albumentations   ratio")
    for name in ("r", "rts", "p", "e", "tc"):
        distortion = distorted_mnist(name).distortion
        ways: dict[str, Callable[[], object]] = {"ours": partial(distortion.apply, digits, index, generator)}
        if name != "tc" and HAVE_ALBUMENTATIONS:  # it has no clutter
            ways["theirs"] = partial(one_by_one, albumentations_pipeline(name), images)
        took = side_by_side(ways)
        theirs = (
            f"{BATCH / took['theirs']:12,.0f} {took['theirs'] / took['ours']:9.1f}x"
            if "theirs" in took
            else "           -"
        )
        print(f"    {name.upper():34s} {BATCH / took['ours']:9,.0f} {theirs}")
    torch.set_num_threads(threads)


class AlbumentationsDigits(torch.utils.data.Dataset):
    """One digit at a time through albumentations, as in a tutorial."""

    def __init__(self, data: DistortedMnist):
        self.images, self.labels, self.pipeline = data.digits.numpy(), data.labels, albumentations_pipeline("r")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.pipeline(image=self.images[i][:, :, None])["image"]
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255, self.labels[i]


def trainer(epochs: int, **kwargs) -> pl.Trainer:
    return pl.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False, **kwargs)


def bench_engine(steps: int = 200) -> None:
    data = distorted_mnist("r")
    plain = TensorDataset(data.digits[:, None].float() / 255, data.labels)  # no distortion: an upper bound
    schedule = Schedule(
        steps, BATCH, CONFIG.schedule.block_steps, group("optimizer/sgd", lr=0.01),
        group("schedule/onecycle")["schedule"]["lr_scheduler"], bound={"all": 1.0},
    )  # fmt: skip

    def network() -> nn.Module:
        return mnist(data, classifier="fcn")

    def usual(dataset) -> Callable[[], object]:
        loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)  # 235 batches an epoch: more than `steps`

        def fit() -> None:
            with redirect_stdout(StringIO()):  # the bar is part of the cost, but not shown here
                trainer(1, limit_train_batches=steps).fit(bench_cuda.UsualWay(network(), Classification()), loader)

        return fit

    took = side_by_side(
        {
            "engine": lambda: trainer(schedule.blocks, enable_progress_bar=False).fit(
                Training(network(), data, Classification(), schedule, 0, "fp32")
            ),
            **({"usual": usual(AlbumentationsDigits(data))} if HAVE_ALBUMENTATIONS else {}),
            "bare": usual(plain),
        },
        rounds=3,
        min_s=0,
    )
    print(f"\n(b) FCN on R, batch {BATCH}: training steps/s")
    print(f"    ours, distortions on the fly           {steps / took['engine']:9.0f}")
    for name, text in (("usual", "DataLoader + albumentations + Trainer"), ("bare", "the same without distortion")):
        if name not in took:
            print(f"    {LACKING}")
            continue
        print(f"    {text:38s} {steps / took[name]:9.0f} {took[name] / took['engine']:9.1f}x")


class PlainStn(nn.Module):
    """A spatial transformer as tutorials write it, with the same two networks."""

    def __init__(self, localisation: nn.Module, classifier: nn.Module):
        super().__init__()
        self.localisation, self.classifier = localisation, classifier

    def forward(self, u: Tensor) -> Tensor:
        grid = F.affine_grid(self.localisation(u).view(-1, 2, 3), list(u.shape), align_corners=False)
        return self.classifier(F.grid_sample(u, grid, align_corners=False))


def training_step(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], bf16: bool) -> Callable[[], object]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=bf16)
    parameters = list(network.parameters())

    def step() -> None:
        u, label = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(u).float(), label)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def fresh(data: DistortedMnist) -> Iterator[tuple[Tensor, Tensor]]:
    generator = Generator().manual_seed(0)
    while True:
        yield data.batch(BATCH, generator)


def bench_st_cnn() -> None:
    data = distorted_mnist("r")
    st_cnn = {"classifier": "cnn", "localisation": "convolutional", "transform": "affine"}
    ours, theirs = mnist(data, **st_cnn).to(memory_format=torch.channels_last), mnist(data, **st_cnn)
    first = theirs.classifier[0][0]
    first.forward = partial(nn.Conv2d.forward, first)  # without SlimConv2d's faster gradient
    baseline = mnist(data, classifier="cnn").to(memory_format=torch.channels_last)
    took = side_by_side(
        {
            "ours": training_step(ours, fresh(data), BF16),
            "plain": training_step(PlainStn(theirs.transformer.localisation, theirs.classifier), fresh(data), False),
            "cnn": training_step(baseline, fresh(data), BF16),
        },
        min_s=1,
    )
    print(f"\n(c) ST-CNN Aff, 28 px, {num_params(ours):,} parameters, ms a step of {BATCH}")
    print(f"    ours, {PRECISION} and channels_last           {1e3 * took['ours']:9.1f}")
    print(f"    F.affine_grid + F.grid_sample in fp32  {1e3 * took['plain']:9.1f} {took['plain'] / took['ours']:9.1f}x")
    print(f"\n(e) the CNN of {num_params(baseline):,} parameters      {1e3 * took['cnn']:9.1f}")
    print(f"    the spatial transformer adds           {100 * (took['ours'] / took['cnn'] - 1):9.1f} %")


def conv_flops(network: nn.Module, u: Tensor) -> list[tuple[str, nn.Module, Tensor, int]]:
    """Every convolution and linear layer with its input and the FLOPs of its forward pass on u."""
    layers: list[tuple[str, nn.Module, Tensor, int]] = []

    def count(name: str):
        def hook(module, inputs, output):
            per_output = module.weight[0].numel()
            layers.append((name, module, inputs[0].detach(), 2 * per_output * output.numel()))

        return hook

    hooks = [
        m.register_forward_hook(count(n)) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(u)
    for hook in hooks:
        hook.remove()
    return layers


def bench_flops() -> None:
    print("\n(d) the CNN's training step at the GEMM rate of its precision")
    print("        precision  GFLOP a step    ms   GFLOP/s   GEMM   share   forward of each layer (share of GEMM)")
    if not BF16:
        print("    bf16 not measured: it is not faster than fp32 on this machine")
    for precision in ("bf16", "fp32") if BF16 else ("fp32",):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        gemm = bench_cuda.gemm_rate(dtype, CPU, 2048)
        for name in ("r", "rts", "tc"):
            data = distorted_mnist(name)
            network = mnist(data, classifier="cnn").to(memory_format=torch.channels_last)
            u, label = next(fresh(data))
            layers = conv_flops(network, u)
            # forward, gradient of the weights, and gradient of the input except in the first layer
            flops = sum((2 if i == 0 else 3) * n for i, (*_, n) in enumerate(layers))

            def once(u=u, label=label) -> Iterator[tuple[Tensor, Tensor]]:
                while True:
                    yield u, label

            bf16 = precision == "bf16"
            seconds = side_by_side({"step": training_step(network, once(), bf16)}, rounds=3)["step"]
            shares = []
            for layer_name, module, inputs, n in layers:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    forward = partial(module, inputs.to(dtype))
                    layer_s = side_by_side({"forward": forward}, rounds=3, min_s=0.1)["forward"]
                shares.append(f"{layer_name} {n / layer_s / gemm:.2f}")
            rate = flops / seconds
            print(f"    {u.shape[-1]:2d} px  {precision} {flops / 1e9:12.1f} {1e3 * seconds:7.1f} {rate / 1e9:9.0f} "
                  f"{gemm / 1e9:6.0f} {rate / gemm:6.2f}   {', '.join(shares)}", flush=True)  # fmt: skip


class Given(nn.Module):
    """A localisation network that costs nothing: theta is always the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(Affine.identity))

    def forward(self, u: Tensor) -> Tensor:
        return self.theta.expand(len(u), -1)


def bench_svhn(batch: int = 16) -> None:
    print(f"\n(f) SVHN, the networks of A.5, {PRECISION}, batch {batch}: ms of processor time, forward and backward")
    for size_px in (64, 128):
        u = torch.rand(batch, 3, size_px, size_px).to(memory_format=torch.channels_last)
        label = torch.randint(0, 11, (batch, 5))
        ways: dict[str, Callable[[], object]] = {}
        for name in ("none", "single", "multi"):
            config = group("model/svhn", transformers=name, width=CONFIG.width, dropout=CONFIG.dropout)
            network = build.network(config, (3, size_px, size_px), 11).to(memory_format=torch.channels_last)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                network(u[:1])
            print(f"    {size_px:3d} px  {name:26s} {counter.get_total_flops() / 1e9:13.3f} GFLOP an image, forward")
            ways[name] = partial(forward_backward, network, u, label)
            if name == "none":
                ways["none, gradient in the image"] = partial(
                    forward_backward, network, u.clone().requires_grad_(), label
                )
        without = copy.deepcopy(network)
        for module in without.modules():
            if isinstance(module, SpatialTransformer):
                module.register_module("localisation", Given())
        ways["multi, theta given"] = partial(forward_backward, without, u, label)
        seconds = turns(ways, rounds=5, min_s=0, clock=time.process_time)
        took = {name: statistics.median(values) for name, values in seconds.items()}
        for name, s in took.items():
            print(f"    {size_px:3d} px  {name:28s} {1e3 * s:11.0f} {100 * (s / took['none'] - 1):9.1f} %", flush=True)


def forward_backward(network: nn.Module, u: Tensor, label: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        loss = cross_entropy(network(u).float(), label)
    network.zero_grad()
    loss.backward()


def bench_cells(cells: int = 5) -> None:
    """As one batch: `cells` localisation networks under vmap, all their crops through the encoder at once."""
    where = {"precision": PRECISION, "runs": ROOT / "runs", "data_root": ROOT / "data"}
    objective: TripletHinge = build.objective(group("objective/colocalisation"), **where)
    n = group("schedule/colocalisation")["schedule"]["batch_size"]
    images, random, networks = [], [], []
    for digit in range(cells):
        data = build.data_set(group("data/colocalisation", digit=digit, patches=16, seed=0), ROOT / "data")
        objective.prepare(data)
        images.append(data.batch(n, Generator().manual_seed(0))[0])
        random.append(objective.random)
        networks.append(build.network(group("model/colocalisation", budget=100_000), data.in_shape, data.classes))
    params, buffers = torch.func.stack_module_state(networks)  # type: ignore[arg-type]

    def cut(params: dict[str, Tensor], buffers: dict[str, Tensor], u: Tensor) -> Tensor:
        return torch.func.functional_call(networks[0], (params, buffers), (u,))

    def loss(encoding: Tensor, random: Tensor) -> Tensor:
        return triplet_hinge(encoding, random, objective.margin, objective.attraction, objective.one_sided)

    def one_after_the_other() -> None:
        for network, u, crops in zip(networks, images, random, strict=True):
            network.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                encoding = objective.encoder(network(u))
            loss(encoding, crops).backward()

    def one_batch() -> None:
        for p in params.values():
            p.grad = None
        crops = torch.vmap(cut)(params, buffers, torch.stack(images)).flatten(0, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            encoding = objective.encoder(crops)
        torch.stack([loss(*cell) for cell in zip(encoding.chunk(cells), random, strict=True)]).sum().backward()

    took = side_by_side({"loop": one_after_the_other, "batch": one_batch}, min_s=1)
    print(f"\n(g) Table 5, ms a step of {cells} cells of {n} images")
    print(f"    in turn                {1e3 * took['loop']:9.1f}")
    print(f"    as one batch           {1e3 * took['batch']:9.1f} {took['loop'] / took['batch']:9.2f}x")


PARTS = {
    "a": bench_distortions,
    "b": bench_engine,
    "c": bench_st_cnn,
    "d": bench_flops,
    "f": bench_svhn,
    "g": bench_cells,
    "k": bench_transforms,
    **bench_cuda.parts(),
}


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all; c includes e)"
    )
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:  # choices= needs Python 3.12
        raise ValueError(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # of the usual way
    machine = describe(CPU)
    print(f"{machine['device']}, {machine['threads']} threads, PyTorch {torch.__version__}; about five minutes")
    for part in options.parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    run(main)
