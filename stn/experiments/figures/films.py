"""Figure 4, and films of how spatial transformers learn, as in the authors' video.

The networks are trained here like recorded runs, in about two minutes of one core.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from stn import trace
from stn.experiments import draw, resolvers
from stn.experiments.command import ROOT
from stn.experiments.training.colocalisation import window
from stn.experiments.training.run import build_training
from stn.transformer import Warp

FRAMES = 45
FIGURE_4 = (0, 60, 120, 180, 300)  # steps of the figure's columns
COLOCALISATION = ("experiment=coloc_tc_one_sided", "data.digit=8", "seed=1")
RTS = ("experiment=mnist_st_fcn_affine", "data/distortion=rts", "schedule=quick")


class Watch(pl.Callback):
    """Record what the network's only transformer does to a probe, before training and after each block."""

    def __init__(self, probe: Tensor):
        self.probe = probe
        self.seen: dict[int, Warp] = {}

    def on_train_start(self, trainer, module) -> None:
        (self.seen[0],) = trace(module.network, self.probe)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        (self.seen[int(module.curve[-1]["step"])],) = trace(module.network, self.probe)


@cache
def train(words: tuple[str, ...], columns: int) -> tuple[dict[int, Warp], Any]:
    """Train a run on one core; return the warps of the first `columns` test images by step, and the data set."""
    torch.set_num_threads(1)
    resolvers.register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        where = [f"data.root={ROOT / 'data'}", f"runs_dir={ROOT / 'runs'}", "device=cpu"]
        cfg = hydra.compose("config", [*words, *where], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    config: Any = OmegaConf.to_container(own, resolve=True)
    module = build_training(config)
    watch = Watch(next(iter(module.data.test_batches()))[0][:columns])
    trainer = pl.Trainer(
        max_epochs=module.schedule.blocks, accelerator="cpu", callbacks=[watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    print(f"{' '.join(words)}: {module.schedule.steps} steps", flush=True)
    trainer.fit(module)
    return watch.seen, module.data


def boxes(warp: Warp, squares: Tensor) -> list[Image.Image]:
    """The images with the windows of their attention transformer and the squares of the digits."""
    side = warp.u.shape[-1]
    both = torch.stack([window(warp.theta, side), squares[: len(warp.u)]], dim=1) * 2 / side - 1
    return [draw.boxes(u, pair, 112) for u, pair in zip(warp.u, both, strict=True)]


def strip(seen: dict[int, Warp], squares: Tensor) -> Image.Image:
    """A row per image, a column per step, and a legend."""
    columns = [boxes(seen[step], squares) for step in FIGURE_4]
    steps = [draw.words(f"step {step}", columns[0][0].width) for step in FIGURE_4]
    rows = [("", row) for row in (steps, *zip(*columns, strict=True))]
    return draw.legend(draw.rows(rows), ("window", "the digit's square, not seen in training"))


def film(seen: dict[int, Warp], frame: Callable[[Warp], Image.Image]) -> list[Image.Image]:
    """Frames of training, closer together at the start, where most happens."""
    steps, last = sorted(seen), max(seen)
    near = [min(steps, key=lambda step: abs(step - last * (i / FRAMES) ** 2)) for i in range(FRAMES + 1)]
    return [draw.caption(frame(seen[step]), f"step {step} of {last}") for step in sorted(set(near))]


def figure4(runs: Path) -> Image.Image:
    """The windows of co-localisation (digit 8, with clutter) over training."""
    seen, data = train(COLOCALISATION, 5)
    return strip(seen, data.boxes)


def figure4_film(runs: Path) -> list[Image.Image]:
    seen, data = train(COLOCALISATION, 5)
    return film(seen, lambda warp: draw.stack([boxes(warp, data.boxes)]))


def training_rts(runs: Path) -> list[Image.Image]:
    """The grids and outputs of an ST-FCN Aff on RTS."""
    seen, _ = train(RTS, 6)
    return film(seen, lambda warp: draw.warps(warp.u, warp.source, warp.v))
