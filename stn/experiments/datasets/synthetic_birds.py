"""Synthetic birds: drawn images in the on-disk format of CUB-200-2011, for machines that cannot fetch the real ones.

A class is one of six patterns on the head.  Everything else has the same distribution in all classes: position, size,
tilt, direction, colours, background, and the round objects in it, which have the same patterns.  So one small part,
anywhere in the image, tells the classes apart.  These are not photographs, and no figure on them is a figure on CUB.
"""

import io
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stn.experiments.datasets.cub import BirdPhotos
from stn.experiments.errors import writing

# Raise it when a change alters an image, a label or how they are drawn.
# 2: the head alone tells the classes apart; the birds are smaller and anywhere in the image.
REVISION = 2
FOLDER = f"synthetic_birds_{REVISION}"  # in the data folder; the images of older revisions stay
CLASSES = ("cap", "throat", "face", "nape", "stripe", "ring")  # position of the mark on the head
PARTS = ("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape",
         "right eye", "right leg", "right wing", "tail", "throat")  # fmt: skip
SEED = 2011
TRAIN, TEST = 800, 150  # images per class
OVER = 3  # drawn at this multiple of the size, then reduced, for smooth edges
SIDE_PX = (104, 128)  # range of an image's sides
LENGTH = (0.25, 0.5)  # range of a bird's length, in shorter sides of its image
REACH = 0.36  # largest distance of a head from the image's centre along each axis, in shorter sides
TILT_DEG = 30
Point = tuple[float, float]
Colour = tuple[int, ...]
Box = tuple[float, float, float, float]  # x, y, width, height
Bird = tuple[int, bool, bytes, dict[str, Point], Box]  # class, whether for training, JPEG, its parts and box in px
Fill = Callable[[list[Point], Colour], None]  # fills a polygon, in the bird's own coordinates

# A bird facing right: x to the right, y down, in units of its length, with the centre of its body at (0, 0).
HEAD, HEAD_R = (0.30, -0.20), 0.16
PLACES: dict[str, Point] = {
    "back": (-0.08, -0.13), "beak": (0.49, -0.18), "belly": (-0.02, 0.16), "breast": (0.20, 0.05),
    "crown": (0.29, -0.34), "forehead": (0.41, -0.29), "eye": (0.36, -0.22), "leg": (0.00, 0.27),
    "wing": (-0.10, -0.01), "nape": (0.16, -0.24), "tail": (-0.50, 0.08), "throat": (0.33, -0.06),
}  # fmt: skip


class SyntheticBirds(BirdPhotos):
    """Drawn birds; an existing folder is not changed."""

    synthetic = True

    @staticmethod
    def folder(root: Path) -> Path:
        """The folder of this revision's images, which are drawn on first use."""
        return write(root / FOLDER)


def write(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = SEED) -> Path:
    """Draw `train` + `test` images per class into `folder`, which appears only when complete; the same every time.

    The files and their lines are in the format of CUB_200_2011.  An existing folder is not changed.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with writing(folder):
            _write_into(scratch, train, test, seed)
        os.replace(scratch, folder)
    except OSError:
        if not folder.exists():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _write_into(folder: Path, train: int, test: int, seed: int) -> None:
    def birds() -> Iterator[Bird]:
        for k in range(len(CLASSES)):
            for i in range(train + test):
                picture, places, box = draw(k, np.random.default_rng((seed, k, i)))
                yield k, i < train, jpeg(picture, 92), places, box

    write_files(folder, [f"Synthetic_{name}" for name in CLASSES], birds())
    (folder / "README").write_text(
        f"Synthetic birds, drawn by stn.experiments.datasets.synthetic_birds with seed {seed}.  Not CUB.\n"
    )


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture as the bytes of a JPEG file."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return data.getvalue()


def write_files(folder: Path, classes: list[str], birds: Iterable[Bird]) -> None:
    """CUB's images and text files of these birds, class after class, into `folder`."""
    names = [f"{k + 1:03d}.{name}" for k, name in enumerate(classes)]
    lines: dict[str, list[str]] = {name: [] for name in (
        "images", "image_class_labels", "train_test_split", "bounding_boxes", "parts/part_locs"
    )}  # fmt: skip
    of_class = [0] * len(classes)
    for number, (k, train, data, places, box) in enumerate(birds, start=1):
        of_class[k] += 1
        path = f"{names[k]}/{classes[k]}_{of_class[k]:04d}.jpg"
        (folder / "images" / names[k]).mkdir(parents=True, exist_ok=True)
        (folder / "images" / path).write_bytes(data)
        lines["images"].append(f"{number} {path}")
        lines["image_class_labels"].append(f"{number} {k + 1}")
        lines["train_test_split"].append(f"{number} {int(train)}")
        lines["bounding_boxes"].append(f"{number} " + " ".join(f"{value:.1f}" for value in box))
        for p, part in enumerate(PARTS):
            x, y = places.get(part, (0.0, 0.0))
            lines["parts/part_locs"].append(f"{number} {p + 1} {x:.1f} {y:.1f} {int(part in places)}")
    lines["classes"] = [f"{k + 1} {name}" for k, name in enumerate(names)]
    lines["parts/parts"] = [f"{p + 1} {part}" for p, part in enumerate(PARTS)]
    (folder / "parts").mkdir()
    for name, content in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")


def draw(k: int, rng: np.random.Generator) -> tuple[Image.Image, dict[str, Point], Box]:
    """One bird of class k: the image, the parts inside it in px, and the bounding box (x, y, width, height).

    The head is always in the image; the rest of the bird may not be.
    """
    w, h = (int(side) for side in rng.integers(*SIDE_PX, 2, endpoint=True))
    side = min(w, h)
    length = side * rng.uniform(*LENGTH)
    angle, mirrored = math.radians(rng.uniform(-TILT_DEG, TILT_DEG)), bool(rng.integers(2))
    head = w / 2 + side * rng.uniform(-REACH, REACH), h / 2 + side * rng.uniform(-REACH, REACH)

    def place(point: Point) -> Point:
        x, y = point[0] - HEAD[0], point[1] - HEAD[1]
        x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
        return head[0] + (-x if mirrored else x) * length, head[1] + y * length

    picture = _background(w, h, rng)
    pen = ImageDraw.Draw(picture)
    _bird(k, _plumage(rng), lambda points, colour: _polygon(pen, list(map(place, points)), colour))
    seen = "left" if mirrored else "right"
    places = {(f"{seen} {name}" if name in ("eye", "leg", "wing") else name): place(point)
              for name, point in PLACES.items()}  # fmt: skip
    places = {name: (x, y) for name, (x, y) in places.items() if 0 <= x < w and 0 <= y < h}
    outline = np.array([place(p) for p in ((0.56, -0.175), (-0.56, 0.08), (0.29, -0.36), (0.05, 0.30), (-0.3, 0.1))])
    (left, top), (right, bottom) = outline.min(0).clip(0), outline.max(0).clip(None, (w, h))
    picture = picture.resize((w, h), Image.Resampling.LANCZOS)
    grain = rng.normal(0, 2, (h, w, 1))
    picture = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
    return picture, places, (left, top, right - left, bottom - top)


def _polygon(pen: ImageDraw.ImageDraw, points: list[Point], colour: Colour) -> None:
    pen.polygon([(x * OVER, y * OVER) for x, y in points], fill=colour)


def _bird(k: int, colours: dict[str, Colour], fill: Fill) -> None:
    for x in (-0.03, 0.04):
        fill([(x, 0.12), (x + 0.02, 0.12), (x + 0.035, 0.30), (x + 0.015, 0.30)], colours["beak"])
    fill([(-0.22, -0.06), (-0.56, 0.03), (-0.52, 0.13), (-0.20, 0.10)], colours["wing"])
    fill(_ellipse((0.0, 0.0), 0.30, 0.17, -0.25), colours["body"])
    fill([(0.10, -0.13), (0.24, -0.30), (0.40, -0.14), (0.26, 0.05)], colours["body"])
    fill(_ellipse((-0.09, -0.01), 0.22, 0.10, 0.12), colours["wing"])
    fill([(0.42, -0.26), (0.56, -0.175), (0.42, -0.12)], colours["beak"])
    _patterned(k, HEAD, HEAD_R, colours["body"], colours["mark"], fill)


def _patterned(k: int, middle: Point, r: float, ground: Colour, mark: Colour, fill: Fill) -> None:
    """A disc with the pattern of class k, about half of it in each colour: a head, or an object in the background."""
    x, y = middle
    fill(_ellipse(middle, r, r), ground)
    if CLASSES[k] == "stripe":
        fill([(x - 0.95 * r, y - 0.38 * r), (x + 0.95 * r, y - 0.38 * r),
              (x + 0.95 * r, y + 0.38 * r), (x - 0.95 * r, y + 0.38 * r)], mark)  # fmt: skip
    elif CLASSES[k] == "ring":
        fill(_ellipse(middle, 0.7 * r, 0.7 * r), mark)
    else:
        first = {"face": -0.5, "throat": 0.0, "nape": 0.5, "cap": 1.0}[CLASSES[k]] * math.pi
        fill([(x + r * math.cos(first + t), y + r * math.sin(first + t)) for t in np.linspace(0, math.pi, 20)], mark)


def _ellipse(middle: Point, a: float, b: float, tilt: float = 0.0) -> list[Point]:
    c, s = math.cos(tilt), math.sin(tilt)
    turns = [2 * math.pi * i / 40 for i in range(40)]
    return [(middle[0] + a * math.cos(t) * c - b * math.sin(t) * s,
             middle[1] + a * math.cos(t) * s + b * math.sin(t) * c) for t in turns]  # fmt: skip


def _plumage(rng: np.random.Generator) -> dict[str, Colour]:
    """Colours that do not depend on the class; the mark contrasts with the body."""
    body = rng.integers(40, 200, 3)
    wing = body * rng.uniform(0.55, 0.8)
    mark = rng.integers(225, 256, 3) if body.mean() < 130 else rng.integers(0, 30, 3)
    return {name: tuple(int(c) for c in colour) for name, colour in (
        ("body", body), ("wing", wing), ("mark", mark), ("beak", rng.integers(30, 220, 3)),
    )}  # fmt: skip


def _background(w: int, h: int, rng: np.random.Generator) -> Image.Image:
    """Soft blotches of one colour, then leaves and twigs of similar colours; no bird."""
    tone = rng.integers(80, 171, 3)
    blotches = tone + rng.integers(-20, 21, (5, 6, 3))
    picture = Image.fromarray(blotches.astype(np.uint8)).resize((w * OVER, h * OVER), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)

    def colour() -> Colour:
        return tuple(int(c) for c in tone + rng.integers(-50, 51, 3))

    def anywhere() -> Point:
        return rng.uniform(0, w), rng.uniform(0, h)

    for _ in range(int(rng.integers(4, 9))):
        a, b = rng.uniform(1.5, 8, 2)
        _polygon(pen, _ellipse(anywhere(), a, b, rng.uniform(0, math.pi))[:: int(rng.integers(1, 11))], colour())
    for _ in range(int(rng.integers(0, 3))):
        ends = [(x * OVER, y * OVER) for x, y in (anywhere(), anywhere())]
        pen.line(ends, fill=colour(), width=int(rng.integers(1, 4)) * OVER)
    return picture
