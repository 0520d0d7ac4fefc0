"""Show what a recorded spatial transformer does to your own image files: input, predicted grid, output, class.

python scripts/predict.py digit.jpg another.png --model mnist_st_cnn_tps-rts

An image is made grey, inverted where its border is bright (MNIST's background is black), stretched to the full range,
and fitted into the model's square canvas.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from stn import trace
from stn.experiments import draw, zoo
from stn.experiments.command import ROOT, run

SIDE_PX = 252


def fit(image: Image.Image, side_px: int) -> tuple[Tensor, str]:
    """The image as (1, S, S) in [0, 1], background 0, and in words what was done to it."""
    done = [f"{image.width} x {image.height} {image.mode}"]
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    array = np.asarray(image if image.mode[0] in "IF" else image.convert("L"), dtype=np.float64)
    border = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])
    low, high = array.min(), array.max()
    if high == low:
        raise ValueError("it has one single value everywhere: there is nothing to see in it")
    background = (np.median(border) - low) / (high - low)
    array = (array - low) / (high - low)
    done.append(f"grey {low:g} to {high:g} stretched to 0 to 1")
    if background > 0.5:
        array, background = 1 - array, 1 - background
        done.append("inverted, its border is bright")
    array = np.clip((array - background) / (1 - background), 0, 1)
    grey = Image.fromarray((255 * array).round().astype(np.uint8))
    scale = side_px / max(grey.size)
    size = (max(1, round(scale * grey.width)), max(1, round(scale * grey.height)))
    canvas = Image.new("L", (side_px, side_px))
    canvas.paste(grey.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR),
                 ((side_px - size[0]) // 2, (side_px - size[1]) // 2))  # fmt: skip
    done.append(f"scaled to {size[0]} x {size[1]}, centred on {side_px} x {side_px}")
    return torch.from_numpy(np.array(canvas)).float()[None] / 255, "; ".join(done)


def show(model: zoo.Recorded, path: Path, target: Path) -> str:
    """Write the picture of one image file to `target`; return one line about it."""
    try:
        with Image.open(path) as image:
            u, done = fit(image, model.in_shape[1])
    except UnidentifiedImageError:
        raise ValueError(f"{path}: no image that can be read; give a PNG, JPEG, GIF, BMP, TIFF or WebP file") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"{path}: cannot be used: {reason}") from None
    warps = trace(model.network, u[None])
    with torch.no_grad():
        share = model.network(u[None]).softmax(1)[0]
    first, second = share.topk(2).indices.tolist()
    predicted = f"{first} ({100 * share[first]:.0f} %)"
    tiles = [draw.caption(draw.tile(u, SIDE_PX), "input")]
    for warp in warps:
        size = (warp.v.shape[2], warp.v.shape[3])
        tiles.append(draw.caption(draw.grid_tile(warp.u[0], warp.source[0], size, SIDE_PX), "grid"))
        tiles.append(draw.caption(draw.tile(warp.v[0], SIDE_PX), f"output: {predicted}"))
    draw.stack([tiles]).save(target)
    return f"{path}: {predicted}, then {second} ({100 * share[second]:.0f} %); {done}; {target}"


def chosen(name: str | None) -> zoo.Recorded:
    """The network of that name, or the best on RTS.  Raises ValueError where it is no transformer of single digits."""
    model = zoo.load(name or zoo.best_transformer("rts", ROOT), ROOT)
    data = model.record["config"]["data"]["name"]
    if data != "mnist":
        raise ValueError(f"{model.id} was trained on data={data}: choose a network for distorted MNIST")
    if not trace(model.network, torch.zeros(1, *model.in_shape)):
        raise ValueError(f"{model.id} has no spatial transformer: choose one with `st` in its name")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files of one digit each")
    default = "default: the transformer with the lowest recorded error on RTS, digits of 0.7 to 1.2 times the size"
    parser.add_argument("--model", help=f"an id in runs/ or results/weights/, or how it begins ({default})")
    parser.add_argument("--out", type=Path, default=Path(), help="where the pictures go (default: here)")
    parser.add_argument("--force", action="store_true", help="overwrite pictures that are there already")
    options = parser.parse_args()
    model = chosen(options.model)
    if twice := [name for name, n in Counter(path.stem for path in options.images).items() if n > 1]:
        raise ValueError(
            f"several images are called {twice[0]!r} and would share one picture: give them one by one, with --out"
        )
    targets = {path: options.out / f"{path.stem}-stn.png" for path in options.images}
    if there := [target for target in targets.values() if target.exists() and not options.force]:
        raise ValueError(f"{there[0]} exists: --force overwrites it, --out FOLDER writes elsewhere")
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{model.id}, test error {model.record['metrics'].get('test/error', float('nan')):.2f} %")
    wrong = []
    for path, target in targets.items():
        try:
            print(show(model, path, target))
        except ValueError as error:
            wrong.append(f"error: {error}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    run(main)
