"""Synthetic birds: drawn images in the on-disk format of CUB-200-2011, for where the real ones cannot be had.

A class is one of five head patterns with one of four wing patterns; everything else (colours, pose, size, place, the
background) is drawn alike for all classes, so only two small parts tell them apart.  These are no photographs and no
figure from them is a figure on CUB.
"""

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from stn.experiments.datasets.cub import BirdPhotos

REVISION = 1  # raise it when a change alters an image, a label or how they are drawn
HEADS = ("plain", "eyestripe", "cap", "throat", "ring")
WINGS = ("plain", "bar", "two_bars", "spots")
CLASSES = [f"{head}_{wing}" for head in HEADS for wing in WINGS]
PARTS = ("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape",
         "right eye", "right leg", "right wing", "tail", "throat")  # fmt: skip
SEED = 2011
TRAIN, TEST = 80, 50  # images per class
OVER = 2  # drawn at so many times the size, then reduced: smooth edges
Point = tuple[float, float]

# A bird that looks to the right, x to the right, y down, in units of its length, the middle of its body at (0, 0).
HEAD, HEAD_R = (0.30, -0.20), 0.115
PLACES: dict[str, Point] = {
    "back": (-0.08, -0.13), "beak": (0.45, -0.18), "belly": (-0.02, 0.16), "breast": (0.20, 0.05),
    "crown": (0.29, -0.30), "forehead": (0.38, -0.26), "eye": (0.34, -0.22), "leg": (0.00, 0.27),
    "wing": (-0.10, -0.01), "nape": (0.20, -0.24), "tail": (-0.50, 0.08), "throat": (0.33, -0.10),
}  # fmt: skip


class SyntheticBirds(BirdPhotos):
    """Drawn birds below root/synthetic_birds; drawn on first use."""

    synthetic = True

    def __init__(self, root: str | Path, size_px: int, shrink: int | float = 1.0, excluded: str | Path | None = None):
        super().__init__(write(Path(root) / "synthetic_birds"), size_px, shrink, excluded)

    @staticmethod
    def ensure(root: str | Path, **settings: Any) -> None:
        """Draw the images where they are not there yet."""
        write(Path(root) / "synthetic_birds")


def write(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = SEED) -> Path:
    """Draw `train` + `test` images per class into `folder`, which appears only when it is whole; the same every time.

    The files and their lines are those of CUB_200_2011.  An existing folder stays as it is.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_into(scratch, train, test, seed)
        os.replace(scratch, folder)
    except OSError:
        if not folder.exists():  # or another process was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _write_into(folder: Path, train: int, test: int, seed: int) -> None:
    lines: dict[str, list[str]] = {name: [] for name in (
        "images", "image_class_labels", "train_test_split", "bounding_boxes", "parts/part_locs"
    )}  # fmt: skip
    number = 0
    for k, name in enumerate(CLASSES):
        directory = f"{k + 1:03d}.Made_{name}"  # an older word for synthetic, which recorded checksums are over
        (folder / "images" / directory).mkdir(parents=True)
        for i in range(train + test):
            number += 1
            picture, places, box = draw(k, np.random.default_rng((seed, k, i)))
            path = f"{directory}/Made_{name}_{i + 1:04d}.jpg"
            picture.save(folder / "images" / path, quality=92)
            lines["images"].append(f"{number} {path}")
            lines["image_class_labels"].append(f"{number} {k + 1}")
            lines["train_test_split"].append(f"{number} {int(i < train)}")
            lines["bounding_boxes"].append(f"{number} " + " ".join(f"{value:.1f}" for value in box))
            for p, part in enumerate(PARTS):
                x, y = places.get(part, (0.0, 0.0))
                lines["parts/part_locs"].append(f"{number} {p + 1} {x:.1f} {y:.1f} {int(part in places)}")
    lines["classes"] = [f"{k + 1} {k + 1:03d}.Made_{name}" for k, name in enumerate(CLASSES)]
    lines["parts/parts"] = [f"{p + 1} {part}" for p, part in enumerate(PARTS)]
    (folder / "parts").mkdir()
    for name, content in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")
    (folder / "README").write_text(
        f"Synthetic birds, drawn by stn.experiments.datasets.synthetic_birds with seed {seed}.  Not CUB.\n"
    )


def draw(k: int, rng: np.random.Generator) -> tuple[Image.Image, dict[str, Point], tuple[float, float, float, float]]:
    """One bird of class k: the image, its visible parts in pixels, its bounding box (x, y, width, height)."""
    head, wing = HEADS[k // len(WINGS)], WINGS[k % len(WINGS)]
    w, h = (int(side) for side in rng.integers(168, 241, 2))
    length = min(w, h) * rng.uniform(0.50, 0.72)
    angle, mirrored = math.radians(rng.uniform(-30, 30)), bool(rng.integers(2))
    reach = 0.52 * length
    centre = (rng.uniform(reach, w - reach), rng.uniform(reach * 0.8, h - reach * 0.8))

    def place(point: Point) -> Point:
        x, y = point
        x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
        return centre[0] + (-x if mirrored else x) * length, centre[1] + y * length

    picture = _background(w, h, rng)
    pen = ImageDraw.Draw(picture)
    colours = _plumage(rng)

    def polygon(points: list[Point], colour: tuple[int, ...]) -> None:
        pen.polygon([(x * OVER, y * OVER) for x, y in map(place, points)], fill=colour)

    def ellipse(middle: Point, a: float, b: float, colour: tuple[int, ...], tilt: float = 0.0) -> None:
        turns = [2 * math.pi * i / 40 for i in range(40)]
        c, s = math.cos(tilt), math.sin(tilt)
        polygon([(middle[0] + a * math.cos(t) * c - b * math.sin(t) * s,
                  middle[1] + a * math.cos(t) * s + b * math.sin(t) * c) for t in turns], colour)  # fmt: skip

    for x in (-0.03, 0.04):
        polygon([(x, 0.12), (x + 0.015, 0.12), (x + 0.03, 0.30), (x + 0.015, 0.30)], colours["beak"])
    polygon([(-0.22, -0.06), (-0.56, 0.03), (-0.52, 0.13), (-0.20, 0.10)], colours["tail"])
    ellipse((0.0, 0.0), 0.30, 0.17, colours["body"], -0.25)
    polygon([(0.10, -0.13), (0.24, -0.30), (0.40, -0.14), (0.26, 0.05)], colours["body"])
    ellipse((-0.09, -0.01), 0.22, 0.10, colours["wing"], 0.12)
    polygon([(0.39, -0.24), (0.50, -0.175), (0.39, -0.14)], colours["beak"])
    ellipse(HEAD, HEAD_R, HEAD_R, colours["body"])
    mark = colours["mark"]
    bars = {"plain": (), "bar": (-0.10,), "two_bars": (-0.16, -0.03), "spots": ()}[wing]
    for x in bars:
        polygon([(x - 0.02, -0.09), (x + 0.02, -0.09), (x + 0.02, 0.07), (x - 0.02, 0.07)], mark)
    if wing == "spots":
        for spot in ((-0.19, -0.03), (-0.09, -0.05), (0.01, -0.03), (-0.14, 0.03), (-0.03, 0.04)):
            ellipse(spot, 0.024, 0.024, mark)
    x, y = HEAD
    if head == "eyestripe":
        polygon([(x - 0.11, y - 0.04), (x + 0.11, y - 0.04), (x + 0.11, y), (x - 0.11, y)], mark)
    elif head == "cap":
        polygon([(x + HEAD_R * math.cos(t), y + HEAD_R * math.sin(t)) for t in np.linspace(-2.75, -0.4, 20)], mark)
    elif head == "throat":
        polygon([(x + HEAD_R * math.cos(t), y + HEAD_R * math.sin(t)) for t in np.linspace(0.2, 2.2, 20)], mark)
    elif head == "ring":
        ellipse(PLACES["eye"], 0.055, 0.055, mark)
    ellipse(PLACES["eye"], 0.022, 0.022, (15, 15, 15))

    side = "left" if mirrored else "right"  # the side that is seen
    places = {(f"{side} {name}" if name in ("eye", "leg", "wing") else name): place(point)
              for name, point in PLACES.items()}  # fmt: skip
    outline = np.array([place(p) for p in ((0.50, -0.175), (-0.56, 0.08), (0.29, -0.32), (0.05, 0.30), (-0.3, 0.1))])
    (left, top), (right, bottom) = outline.min(0).clip(0), outline.max(0).clip(None, (w, h))
    picture = picture.resize((w, h), Image.Resampling.LANCZOS)
    grain = rng.normal(0, 4, (h, w, 1))
    picture = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
    return picture, places, (left, top, right - left, bottom - top)


def _plumage(rng: np.random.Generator) -> dict[str, tuple[int, ...]]:
    """Colours that tell nothing about the class; the marks stand out from body and wing."""
    body = rng.integers(40, 200, 3)
    wing = (body * rng.uniform(0.55, 0.8)).astype(int)
    mark = rng.integers(225, 256, 3) if body.mean() < 130 else rng.integers(0, 30, 3)
    return {name: tuple(int(c) for c in colour) for name, colour in (
        ("body", body), ("wing", wing), ("tail", wing), ("mark", mark), ("beak", rng.integers(30, 220, 3)),
    )}  # fmt: skip


def _background(w: int, h: int, rng: np.random.Generator) -> Image.Image:
    """Soft blotches, then leaves, twigs and stones, among them shapes and colours like those of the parts."""
    coarse = rng.integers(50, 210, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC).resize((w * OVER, h * OVER))
    pen = ImageDraw.Draw(picture)

    def colour() -> tuple[int, ...]:
        return tuple(int(c) for c in rng.integers(0, 256, 3))

    for _ in range(int(rng.integers(10, 19))):
        x, y = rng.uniform(0, w) * OVER, rng.uniform(0, h) * OVER
        a, b = rng.uniform(3, 16, 2) * OVER
        turn = rng.uniform(0, math.pi)
        points = [
            (x + a * math.cos(t) * math.cos(turn) - b * math.sin(t) * math.sin(turn),
             y + a * math.cos(t) * math.sin(turn) + b * math.sin(t) * math.cos(turn))
            for t in np.linspace(0, 2 * math.pi, int(rng.integers(4, 24)))
        ]  # fmt: skip
        pen.polygon(points, fill=colour())
    for _ in range(int(rng.integers(2, 6))):
        ends = [(rng.uniform(0, w) * OVER, rng.uniform(0, h) * OVER) for _ in range(2)]
        pen.line(ends, fill=colour(), width=int(rng.integers(2, 6)) * OVER)
    return picture
