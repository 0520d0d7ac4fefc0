"""Draw the figures of README and docs into docs/figures: all of them, or those that are named.

Most show a trained network: the one trained longest among your own runs in runs/ and results/weights.  Figure 4 and
the films train two networks, which takes two minutes.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from stn.experiments.command import ROOT, Options, a_path, run, runs_folder
from stn.experiments.figures import (
    Untrained,
    addition,
    birds,
    colocalisation,
    digits,
    films,
    house_numbers,
    results,
    studies,
    uses,
    voxel,
)
from stn.experiments.results.records import replace

Drawn = Image.Image | list[Image.Image] | str  # a picture, the frames of a film, or an SVG
FRAME_MS, LAST_MS = 160, 3000
FIGURES: dict[str, Callable[[Path], Drawn]] = {
    "results": results.table1,
    "distortions": digits.distortions,
    "figure1_rts": partial(digits.first_images, experiment="mnist_st_cnn_tps", distortion="rts"),
    "figure1_tc": partial(digits.first_images, experiment="mnist_st_cnn_affine", distortion="tc"),
    "figure3": digits.by_hand,
    "figure4": films.figure4,
    "figure4_film": films.figure4_film,
    "figure5": voxel.figure5,
    "table1_right_r": partial(digits.won, experiment="mnist_st_cnn_affine", distortion="r"),
    "table1_right_rts": partial(digits.won, experiment="mnist_st_cnn_tps", distortion="rts"),
    "table1_right_e": partial(digits.won, experiment="mnist_st_cnn_tps", distortion="e"),
    "training_rts": films.training_rts,
    "table5_scale": colocalisation.loss_by_scale,
    "aliasing": uses.aliasing,
    "recurrent": uses.recurrent,
}
FIGURES["study_options"] = studies.options
for study in ("width", "p", "e", "tc"):
    FIGURES[f"study_{study}"] = partial(studies.errors, study=study)
for size_px in (64, 128):
    for name, data in (("svhn", "svhn"), ("rendered", "svhn_rendered")):
        FIGURES[f"table2_right_{name}_{size_px}px"] = partial(house_numbers.boxes, data=data, size_px=size_px)
for experiment in ("cub_2st_448", "cub_4st_448"):
    for end, data in (("", "cub"), ("_synthetic", "synthetic_birds")):
        FIGURES[f"table3_right_{experiment}{end}"] = partial(birds.windows, experiment=experiment, data=data)
for transform in ("affine", "projective", "tps"):
    experiment = f"addition_2xst_fcn_{transform}"
    FIGURES[f"table4_right_{experiment}"] = partial(addition.parallel, experiment=experiment)


def save(drawn: Drawn, path: Path) -> Path:
    """Write a picture as PNG, a film as GIF or a chart as SVG, atomically; return the file."""
    content = io.BytesIO()
    if isinstance(drawn, str):
        path = path.with_suffix(".svg")
        content.write(drawn.encode())
    elif isinstance(drawn, Image.Image):
        path = path.with_suffix(".png")
        drawn.save(content, "PNG", optimize=True)
    else:
        path = path.with_suffix(".gif")
        first, *others = [frame.quantize(64, dither=Image.Dither.NONE) for frame in drawn]
        times = [FRAME_MS] * len(others) + [LAST_MS]
        first.save(content, "GIF", save_all=True, append_images=others, duration=times, loop=0, optimize=True)
    replace(path, content.getvalue())
    return path


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to draw, such as figure3 (default: all)")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--runs", type=a_path, help="folder of your own runs (default: runs)")
    parser.add_argument("--out", type=a_path, default=ROOT / "docs/figures", help="default: docs/figures")
    options = parser.parse_args()
    runs = runs_folder(options.runs)
    if options.list:
        print("\n".join(FIGURES))
        return
    if unknown := [name for name in options.names if name not in FIGURES]:
        raise ValueError(f"unknown figure {unknown[0]!r}: choose among {', '.join(FIGURES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or FIGURES:
        try:
            drawn = FIGURES[name](runs)
        except Untrained as error:
            if options.names:
                raise
            print(f"skipped: {name}: {error}")
            continue
        print(f"written: {save(drawn, options.out / name)}", flush=True)


if __name__ == "__main__":
    run(main)
