"""Turns a photograph of one handwritten digit into an image like MNIST's.

White ink on black, the longer side of its box 20 px, its centre of mass at the centre of 28 x 28.  The file
docs/demo/handwriting.js does the same in a browser: change both together.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

WORK_PX = 320  # the photograph is reduced to this longer side
PAPER = 0.25  # of the longer side: wider than a stroke, narrower than a shadow
FAINT = 0.08  # ink has to absorb more than this share of the paper's light
NOISE = 6  # and to differ from the paper by more than this number of standard deviations
EDGE = 0.4  # where a stroke ends, as a share of the darkest ink
GAP = 0.12  # strokes belong together if their gap is at most this share of the largest one, or their boxes overlap
OTHER = 0.5  # a shape at least this share as long as the digit is another digit, a smaller one a speck
SMALLEST = 1 / 16  # of the longer side: a digit of that size inside is preferred to a shape cut by the border
DIGIT_PX, BOX_PX = 28, 20  # MNIST's
STROKE_PX = 2.2  # thinner strokes are widened to this, in pixels of MNIST, whose own have 2 to 4
Grey = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class Found:
    """`digit` as in MNIST, its `box` (x0, y0, x1, y1) as shares of the photograph, and what was `done` to it."""

    digit: UInt8[np.ndarray, "28 28"]
    box: tuple[float, float, float, float]
    done: str


def find(image: Image.Image) -> Found:
    """The one digit of a photograph.  Raises ValueError if there is none or more than one."""
    grey = _grey(image)
    ink, bright = _ink(grey)
    mask, box = _one_digit(ink)
    digit, thin = _as_mnist(ink, mask, box)
    h, w = grey.shape
    x0, y0, x1, y1 = box
    done = [f"{image.width} x {image.height} px", f"{'bright' if bright else 'dark'} ink", "light evened out",
            f"{100 * max((x1 - x0) / w, (y1 - y0) / h):.0f} % of the picture scaled to {BOX_PX} px"]  # fmt: skip
    if thin:
        done.append("thin stroke widened")
    return Found(digit, (x0 / w, y0 / h, x1 / w, y1 / h), ", ".join(done))


def placed(digit: UInt8[np.ndarray, "28 28"], canvas_px: int) -> Float[Tensor, "1 s s"]:
    """The digit at the centre of a canvas, in [0, 1], like an undistorted digit in the network's data."""
    before = (canvas_px - DIGIT_PX) // 2
    after = canvas_px - DIGIT_PX - before
    return F.pad(torch.from_numpy(digit)[None].float() / 255, (before, after, before, after))


def _grey(image: Image.Image) -> Grey:
    """The photograph upright, in grey levels of [0, 1], transparent parts white, with a longer side of WORK_PX."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    grey: np.ndarray = np.asarray(image if image.mode[0] in "IF" else image.convert("L"), dtype=np.float32)
    if not np.isfinite(grey).all():
        raise ValueError("it has pixels that are nan or infinite: save it as PNG or JPEG")
    low, high = grey.min(), grey.max()
    grey = (grey - low) / max(high - low, 1e-6) if image.mode[0] in "IF" else grey / 255
    scale = WORK_PX / max(grey.shape)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return cv2.blur(grey, (3, 3))


def _ink(grey: Grey) -> tuple[Grey, bool]:
    """The share of the paper's light that each pixel lacks, 0 for most paper; and whether the ink is bright.

    Ink is bright if the deviations from the local mean are skewed to the bright side.  A morphological closing gives
    the paper, since shadows are wider than its square and strokes are narrower.
    """
    side = round(PAPER * max(grey.shape))
    apart = grey - cv2.blur(grey, (2 * side + 1, 2 * side + 1))
    bright = (apart * apart * apart).mean() > 0
    grey = 1 - grey if bright else grey
    paper = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))
    ink = 1 - grey / np.maximum(paper, 1e-3)
    return ink - np.median(ink), bool(bright)


def _one_digit(ink: Grey) -> tuple[Bool[np.ndarray, "h w"], tuple[int, int, int, int]]:
    """The mask of the digit's ink, and its box."""
    brighter, peak = np.quantile(ink, (0.25, 0.999))
    sigma = -brighter / 0.674  # of the paper alone: this is its quartile
    if peak < max(FAINT, NOISE * sigma):
        raise ValueError(f"no ink is visible, since its darkest parts absorb {100 * peak:.0f} % of the paper's "
                         "light: use a dark pen on bright paper, in focus")  # fmt: skip
    mask = (ink > EDGE * peak).astype(np.uint8)
    longest = cv2.connectedComponentsWithStats(mask)[2][1:, 2:4].max()
    reach = 2 * round(GAP * longest / 2) + 1
    _, joined = cv2.connectedComponents(cv2.dilate(mask, np.ones((reach, reach), np.uint8)))
    joined[mask == 0] = 0
    h, w = mask.shape
    boxes = {}
    for label in np.unique(joined[joined > 0]):
        y, x = np.nonzero(joined == label)
        boxes[label] = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
    size = {label: max(x1 - x0, y1 - y0) for label, (x0, y0, x1, y1) in boxes.items()}
    inside = [n for n, (x0, y0, x1, y1) in boxes.items() if min(x0, y0) > 0 and x1 < w and y1 < h
              and size[n] >= SMALLEST * max(h, w)]  # fmt: skip
    chosen = inside or list(boxes)
    largest = max(chosen, key=lambda n: size[n])
    x0, y0, x1, y1 = boxes[largest]
    mine = [n for n in chosen if boxes[n][0] < x1 and boxes[n][2] > x0 and boxes[n][1] < y1 and boxes[n][3] > y0]
    if others := sum(size[n] >= OTHER * size[largest] for n in chosen if n not in mine):
        raise ValueError(f"it shows {others + 1} separate figures: crop it to one digit")
    corners = np.array([boxes[n] for n in mine])
    box = (*corners[:, :2].min(0).tolist(), *corners[:, 2:].max(0).tolist())
    return np.isin(joined, mine), box


def _as_mnist(ink: Grey, mask: Bool[np.ndarray, "h w"], box: tuple[int, int, int, int]) -> tuple[np.ndarray, bool]:
    """The digit of this ink as 28 x 28 px, and whether its stroke was widened."""
    x0, y0, x1, y1 = box
    scale = BOX_PX / max(x1 - x0, y1 - y0)
    edge = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
    stroke = 2 * mask.sum() / edge.sum()  # a long strip has two edges
    wider = round(STROKE_PX / scale - stroke)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    full = np.clip(ink / np.median(ink[mask]), 0, 1) * near
    if wider > 0:
        full = cv2.dilate(full, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (wider + 1, wider + 1)))
    y, x = np.nonzero(full > EDGE)
    full = full[y.min() : y.max() + 1, x.min() : x.max() + 1]
    scale = BOX_PX / max(full.shape)
    size = (max(1, round(scale * full.shape[1])), max(1, round(scale * full.shape[0])))
    full = cv2.resize(full, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    rows, columns = np.indices(full.shape)
    top, left = (round(float(np.clip(DIGIT_PX / 2 - 0.5 - (at * full).sum() / full.sum(), 0, DIGIT_PX - side)))
                 for at, side in zip((rows, columns), full.shape, strict=True))  # fmt: skip
    digit = np.zeros((DIGIT_PX, DIGIT_PX), np.uint8)
    digit[top : top + size[1], left : left + size[0]] = (255 * full / full.max()).round()
    return digit, wider > 0
