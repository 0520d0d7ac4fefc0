"""Recognise the digit in your own image files, and show what a recorded spatial transformer does to it.

python scripts/predict.py digit.jpg another.png --model mnist_st_cnn_tps-rts

A photograph of one handwritten digit is prepared as the training images were: uneven light is removed, the ink is
found, cropped, scaled as in MNIST, and centred on the network's canvas.  An answer with a probability below 90 % reads
`not sure`: nearly all errors are among these.
"""

import io
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from torch import Tensor

from stn import trace
from stn.experiments import draw, zoo
from stn.experiments.command import ROOT, Options, a_path, run
from stn.experiments.datasets import handwriting
from stn.experiments.results.records import replace

SIDE_PX = 252
SURE = 0.9  # least softmax of the likeliest class; tests/experiments/test_handwriting.py measures its effect


def photo_tile(image: Image.Image, box: tuple[float, ...]) -> Image.Image:
    """The photograph padded to a square, with the box of its digit."""
    image = ImageOps.contain(ImageOps.exif_transpose(image).convert("RGB"), (SIDE_PX, SIDE_PX))
    x0, y0, x1, y1 = (at * side for at, side in zip(box, image.size * 2, strict=True))
    ImageDraw.Draw(image).rectangle((x0 - 2, y0 - 2, x1 + 1, y1 + 1), outline=draw.BOX_COLOURS[0], width=2)
    return ImageOps.pad(image, (SIDE_PX, SIDE_PX), color="white")


def answer(share: Tensor) -> str:
    """The answer for these probabilities (10,): the class, or the two likeliest if it is not sure."""
    (p, q), (first, second) = (top.tolist() for top in share.topk(2))
    if p < SURE:
        return f"not sure: {first} ({100 * p:.0f} %) or {second} ({100 * q:.0f} %)"
    return f"{first} ({100 * p:.0f} %)"


def show(model: zoo.Recorded, path: Path, target: Path) -> str:
    """Write the picture for one image file to `target`; return one line about it."""
    try:
        with Image.open(path) as image:
            found = handwriting.find(image)
            tiles = [draw.caption(photo_tile(image, found.box), "photograph")]
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a readable image; use a PNG, JPEG, GIF, BMP, TIFF or WebP file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"{path}: cannot be used: {reason}") from None
    u = handwriting.placed(found.digit, model.in_shape[1])[None]
    with torch.no_grad():
        said = answer(model.network(u).softmax(1)[0])
    for warp in trace(model.network, u):
        size = (warp.v.shape[2], warp.v.shape[3])
        tiles.append(draw.caption(draw.grid_tile(warp.u[0], warp.source[0], size, SIDE_PX), "input, grid"))
        tiles.append(draw.caption(draw.tile(warp.v[0], SIDE_PX), "output"))
    tiles[-1] = draw.caption(draw.tile(warp.v[0], SIDE_PX), said)
    content = io.BytesIO()
    draw.stack([tiles]).save(content, "PNG")
    replace(target, content.getvalue())
    return f"{path}: {said}; {found.done}; {target}"


def chosen(name: str | None) -> zoo.Recorded:
    """The network of that name, or the best on RTS.  Raises ValueError unless it has a transformer and reads digits."""
    model = zoo.load(zoo.best_transformer("rts", ROOT) if name is None else name, ROOT)
    data = model.record["config"]["data"]
    if data["name"] != "mnist":
        raise ValueError(f"{model.id} was trained on data={data['name']}: choose a network for distorted MNIST")
    if not trace(model.network, torch.zeros(1, *model.in_shape)):
        raise ValueError(f"{model.id} has no spatial transformer: choose one with `st` in its name")
    return model


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("images", nargs="+", type=a_path, metavar="IMAGE", help="image files with one digit each")
    default = "default: the transformer with the lowest recorded error on RTS, digits rotated by up to 45 degrees"
    parser.add_argument("--model", help=f"the id of a run in runs/ or results/weights/, or its beginning ({default})")
    parser.add_argument("--out", type=a_path, default=Path(), help="folder for the pictures (default: this folder)")
    parser.add_argument("--force", action="store_true", help="overwrite existing pictures")
    options = parser.parse_args()
    model = chosen(options.model)
    if twice := [name for name, n in Counter(path.stem for path in options.images).items() if n > 1]:
        raise ValueError(
            f"several images are called {twice[0]!r} and would share one picture: run them one by one, with --out"
        )
    targets = {path: options.out / f"{path.stem}-stn.png" for path in options.images}
    if there := [target for target in targets.values() if target.exists() and not options.force]:
        raise ValueError(f"{there[0]} exists: overwrite it with --force, or choose another folder with --out")
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
