"""Film how spatial transformers learn, as in the authors' video, into docs/figures; about two minutes of one core.

figure4.png and figure4_film.gif: the windows of co-localisation (digit 8, with clutter) over SGD steps;
training_rts.gif: the grids and outputs of an ST-FCN Aff on RTS.  Both networks are trained here anew, as the recorded
runs of seed 0.
"""

import argparse
import logging
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from PIL import Image
from torch import Tensor

from stn import draw, trace
from stn.training.colocalisation import window
from stn.training.job import build_training
from stn.transformer import Warp

ROOT = Path(__file__).parent.parent
FRAMES = 45
FRAME_MS = 160
LAST_MS = 3000
FIGURE_4 = (0, 60, 120, 180, 300, 600, 1000, 1500)  # SGD steps of the strip
COLOCALISATION = ["experiment=coloc_tc", "data.digit=8"]
RTS = ["experiment=mnist_st_fcn_affine", "data.distortion=rts", "schedule=fast"]


class Watch(pl.Callback):
    """Keep what the only transformer of the network does to a probe: before training and after each block."""

    def __init__(self, probe: Tensor):
        self.probe = probe
        self.seen: dict[int, Warp] = {}

    def on_train_start(self, trainer, module) -> None:
        (self.seen[0],) = trace(module.network, self.probe)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        (self.seen[int(module.curve[-1]["step"])],) = trace(module.network, self.probe)


def train(words: list[str], columns: int) -> tuple[Watch, Any]:
    """Train what `words` say on the CPU, watching the first `columns` test images; the data are returned, too."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose("config", [*words, f"data.root={ROOT / 'data'}"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    module = build_training(cfg)
    watch = Watch(next(iter(module.data.test_batches()))[0][:columns])
    trainer = pl.Trainer(
        max_epochs=module.schedule.blocks, accelerator="cpu", callbacks=[watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    print(f"{' '.join(words)}: {module.schedule.steps} steps")
    trainer.fit(module)
    return watch, module.data


def boxes(warp: Warp, squares: Tensor) -> list[Image.Image]:
    """The images with the windows of their attention transformer, over the squares that the digits fill, in green."""
    side = warp.u.shape[-1]
    both = torch.stack([window(warp.theta, side), squares[: len(warp.u)]], dim=1) * 2 / side - 1
    return [draw.boxes(u, pair, 112) for u, pair in zip(warp.u, both, strict=True)]


def strip(watch: Watch, squares: Tensor) -> Image.Image:
    """Figure 4: a row per image, a column per SGD step."""
    columns = [boxes(watch.seen[step], squares) for step in FIGURE_4]
    rows = [list(row) for row in zip(*columns, strict=True)]
    rows[-1] = [draw.caption(tile, f"step {step}") for tile, step in zip(rows[-1], FIGURE_4, strict=True)]
    return draw.below(draw.stack(rows[:-1]), draw.stack(rows[-1:]))


def film(watch: Watch, frame: Callable[[Warp], Image.Image], file: Path) -> None:
    """An animation whose steps are close together at the start, where most happens."""
    steps, last = sorted(watch.seen), max(watch.seen)
    near = [min(steps, key=lambda step: abs(step - last * (i / FRAMES) ** 2)) for i in range(FRAMES + 1)]
    shown = sorted(set(near))
    frames = [draw.caption(frame(watch.seen[step]), f"step {step} of {last}") for step in shown]
    first, *others = [picture.quantize(64, dither=Image.Dither.NONE) for picture in frames]
    times = [FRAME_MS] * (len(shown) - 1) + [LAST_MS]
    first.save(file, save_all=True, append_images=others, duration=times, loop=0, optimize=True)
    print(f"written: {file}, {len(shown)} frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/figures", help="default: docs/figures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    runpy.run_path(str(ROOT / "run.py"))["register_resolvers"]()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")  # Lightning 2.6 on PyTorch 2.15
    torch.set_num_threads(1)

    watch, data = train(COLOCALISATION, 5)
    strip(watch, data.boxes).save(out / "figure4.png", optimize=True)
    film(watch, lambda warp: draw.stack([boxes(warp, data.boxes)]), out / "figure4_film.gif")
    watch, _ = train(RTS, 6)
    film(watch, lambda warp: draw.warps(warp.u, warp.source, warp.v), out / "training_rts.gif")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
