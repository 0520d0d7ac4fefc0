"""Rendered house numbers in SVHN's format 1: synthetic data for a machine that cannot reach SVHN, never called SVHN.

Numbers of 1 to 5 digits, with the frequencies of lengths in SVHN's training set, in some 200 fonts (FONT_PACKAGES), on
textured walls, with digits of other numbers around them, under perspective, blur, noise and JPEG compression.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stn.experiments.command import end_with_parent, starting_workers
from stn.experiments.datasets.digitstruct import pack

COUNTS = {"train": 26_000, "test": 4_000}
LENGTHS = (5137, 18130, 8691, 1434, 9)  # how many numbers of 1 to 5 digits SVHN's training set has
FONT_PACKAGES = (
    "font_amatic_sc", "font_caladea", "font_fjallaone", "font_fredoka_one", "font_hanken_grotesk", "font_intuitive",
    "font_lato", "font_manrope", "font_rhd", "font_roboto", "font_source_sans_pro", "font_source_serif_pro",
    "matplotlib", "rendercv_fonts",
)  # fmt: skip


@cache
def fonts() -> list[Path]:
    """The font files of FONT_PACKAGES with ten different digits."""
    files: list[Path] = []
    for package in FONT_PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"rendered numbers need the fonts of {package}: pip install -e '.[svhn]', on Python 3.11 or later"
            )
        folder = Path(spec.submodule_search_locations[0])
        files += sorted(file for file in folder.rglob("*") if file.suffix in (".ttf", ".otf") and _has_digits(file))
    return files


def _has_digits(file: Path) -> bool:
    font = ImageFont.truetype(str(file), 20)
    shapes = {(mask.size, bytes(mask)) for mask in map(font.getmask, "0123456789")}
    return len(shapes) == 10 and all(font.getbbox(digit)[3] - font.getbbox(digit)[1] > 5 for digit in "0123456789")


@cache
def _font(index: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(fonts()[index]), size)


def _texture(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Smooth noise in [-1, 1] at several scales, (h, w)."""
    total = np.zeros((h, w), np.float32)
    for cells in (2, 5, 12, 30):
        noise = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        total += rng.uniform(0, 0.5) * cv2.resize(noise, (w, h), interpolation=cv2.INTER_CUBIC)
    return np.clip(total, -1, 1)


def _background(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A tinted wall with texture and a few straight edges, (h, w, 3) in [0, 255]."""
    wall = np.empty((h, w, 3), np.float32)
    wall[:] = rng.uniform(30, 225) + rng.normal(0, 18, 3)
    wall += (rng.uniform(5, 45) * _texture(rng, h, w))[..., None] * rng.uniform(0.7, 1.0, 3)
    for _ in range(rng.integers(0, 4)):  # bricks, frames, shadows
        x, y = rng.integers(0, w), rng.integers(0, h)
        far = (int(x + rng.normal(0, w / 2)), int(y + rng.normal(0, h / 2)))
        shade = wall.copy()
        thick = int(rng.integers(1, 4)) if rng.random() < 0.5 else -1
        cv2.rectangle(shade, (int(x), int(y)), far, (wall[y, x] + rng.normal(0, 30, 3)).tolist(), thick, cv2.LINE_AA)
        wall += rng.uniform(0.3, 1) * (shade - wall)
    return wall.clip(0, 255)


def _write_digits(
    rng: np.random.Generator, mask: Image.Image, text: str, font: int, size: int, x: float, y: float, gap: float
) -> list[tuple[float, float, float, float]]:
    """Draw text digit by digit from x on, centred on y; return the box of each digit: left, top, right, bottom."""
    pen, face, boxes = ImageDraw.Draw(mask), _font(font, size), []
    slope = rng.normal(0, 0.06)
    for digit in text:
        left, top, right, bottom = pen.textbbox((0, 0), digit, font=face)
        place = (x - left, y - (top + bottom) / 2 + rng.normal(0, 0.03 * size))
        pen.text(place, digit, fill=255, font=face)
        boxes.append((place[0] + left, place[1] + top, place[0] + right, place[1] + bottom))
        x += (right - left) + gap * size
        y += slope * size
    return boxes


def _colour(rng: np.random.Generator, wall: np.ndarray) -> np.ndarray:
    """A colour 40 to 150 grey levels from the wall's mean, towards the side with more room."""
    mean = wall.mean((0, 1)).clip(0, 255)
    contrast = rng.uniform(40, 150) * (1 if mean.mean() < rng.uniform(100, 155) else -1)
    return np.clip(mean + contrast + rng.normal(0, 20, 3), 0, 255)


def _paint(wall: np.ndarray, mask: Image.Image, colour: np.ndarray, opacity: float) -> np.ndarray:
    alpha = opacity * np.asarray(mask, np.float32)[..., None] / 255
    return wall + alpha * (colour - wall)


def render(seed: int, split: str, index: int) -> tuple[bytes, np.ndarray]:
    """Image `index` of a split as PNG, and the rows of its digits as in `Number`."""
    rng = np.random.default_rng([seed, sorted(COUNTS).index(split), index])
    length = int(rng.choice(5, p=np.array(LENGTHS) / sum(LENGTHS))) + 1
    text = "".join(map(str, rng.integers(0, 10, length)))
    font, size, gap = int(rng.integers(len(fonts()))), int(rng.integers(22, 60)), rng.uniform(0.02, 0.2)
    sketch = Image.new("L", (12 * size, 4 * size))
    boxes = _write_digits(np.random.default_rng(index), sketch, text, font, size, float(size), 2.0 * size, gap)
    wide, high = boxes[-1][2] - boxes[0][0], boxes[0][3] - boxes[0][1]
    w, h = int(wide * rng.uniform(1.5, 3.4) + size), int(high * rng.uniform(1.6, 3.6) + 4)
    wall = _background(rng, h, w)
    x, y = rng.uniform(0.25, 0.75) * (w - wide), h / 2 + rng.uniform(-0.5, 0.5) * max(0, h - 1.5 * high)
    ink, others = Image.new("L", (w, h)), Image.new("L", (w, h))
    boxes = _write_digits(rng, ink, text, font, size, x, y, gap)
    for side in (-1, 1):  # digits of other numbers, to the left and right, above and below
        for vertical in (False, True):
            if rng.random() < (0.3 if vertical else 0.55):
                other = "".join(map(str, rng.integers(0, 10, rng.integers(1, 4))))
                scale, face = (
                    int(size * rng.uniform(0.6, 1.2)),
                    font if rng.random() < 0.5 else int(rng.integers(len(fonts()))),
                )
                off = rng.uniform(0.3, 0.9) * size
                if vertical:
                    at = (x + rng.uniform(-0.3, 0.6) * wide, y + side * (high + off))
                else:
                    at = (
                        x + wide + off if side > 0 else x - off - 0.6 * scale * len(other),
                        y + rng.normal(0, 0.1) * size,
                    )
                _write_digits(rng, others, other, face, scale, *at, gap)
    colour = _colour(rng, wall)
    picture = _paint(wall, others, colour if rng.random() < 0.6 else _colour(rng, wall), rng.uniform(0.6, 1))
    if rng.random() < 0.3:  # a cast shadow
        shift = (rng.normal(0, 0.06, 2) * size).astype(int)
        picture = _paint(picture, Image.fromarray(np.roll(np.asarray(ink), shift, (1, 0))), np.zeros(3), 0.5)
    picture = _paint(picture, ink, colour, rng.uniform(0.75, 1))

    # perspective: the corners of the picture move by up to 12 % of its height
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
    view = cv2.getPerspectiveTransform(corners, corners + rng.uniform(-0.12, 0.12, (4, 2)).astype(np.float32) * h)
    picture = cv2.warpPerspective(picture, view, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    seen = np.array([
        np.concatenate([moved.min(0), moved.max(0)])
        for left, top, right, bottom in boxes
        for moved in [cv2.perspectiveTransform(
            np.array([[[left, top], [right, top], [right, bottom], [left, bottom]]], np.float64), view)[0]]
    ])  # fmt: skip
    seen = np.clip(np.round(seen), 0, [w - 2, h - 2, w, h])

    # camera: far away (few pixels), blur, noise, compression
    zoom = rng.uniform(0.45, 1.0)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.8))
    w, h = max(8, int(w * zoom)), max(8, int(h * zoom))
    picture = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)
    noise = rng.normal(0, rng.uniform(0, 14), picture.shape)
    array = np.clip(picture + noise, 0, 255).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])[1]
    seen_so: Any = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    png = cv2.imencode(".png", seen_so, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()

    low, high_ = np.floor(seen[:, :2] * zoom), np.ceil(seen[:, 2:] * zoom)
    labels = np.array([int(digit) or 10 for digit in text], np.float64)
    return png, np.column_stack([low, np.maximum(high_ - low, 1), labels])


def _one(job: tuple[int, str, int]) -> tuple[bytes, np.ndarray]:
    cv2.setNumThreads(1)
    return render(*job)


def archive(folder: Path, split: str, n: int, seed: int = 0) -> Path:
    """Write n rendered numbers as folder/<split>.tar.gz, which appears under its name only when complete."""
    return pack(folder, split, _rendered(seed, split, n), n)


def _rendered(seed: int, split: str, n: int) -> Iterator[tuple[bytes, np.ndarray]]:
    jobs = ((seed, split, i) for i in range(n))
    if n < 200:  # a process pool would cost more
        yield from map(_one, jobs)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        with starting_workers():
            pictures = pool.map(_one, jobs, chunksize=50)
        yield from pictures
