"""Pictures of what a spatial transformer does, as PIL images, fast enough to draw during training."""

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stn.sampler import regular_grid, sample
from stn.transforms import Affine3d

GRID_COLOUR = (255, 80, 60)
# of windows 1 to 4 (Table 3 right): Okabe and Ito's orange, sky blue, reddish purple and green, for any colour vision
BOX_COLOURS = ((230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115))
WRONG = (213, 94, 0)  # their vermilion
BOX_COLOUR = (90, 90, 90)
GAP_PX = 4
FONT, TEXT_PX = ImageFont.load_default(17), 26  # readable when 640 px are shown on 390


def tile(image: Tensor, side_px: int) -> Image.Image:
    """One image (C, H, W) with values in [0, 1] as a square of side_px with sharp pixel edges.

    Feature maps, with C neither 1 nor 3, are shown as their mean, divided by its largest value.
    """
    if image.shape[0] not in (1, 3):
        image = image.mean(0, keepdim=True)
        image = image / image.amax().clamp(min=1e-6)
    array = (image.detach().float().cpu().clamp(0, 1) * 255).byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    return Image.fromarray(array).resize((side_px, side_px), Image.Resampling.NEAREST)


def grid_tile(image: Tensor, source: Tensor, size: tuple[int, int], side_px: int, lines: int = 9) -> Image.Image:
    """The image with the sampling grid T_theta(G) of an output of `size` (H', W'), `lines` along each axis."""
    h, w = size
    picture = tile(image, side_px)
    draw = ImageDraw.Draw(picture)
    points = ((source.detach().float().cpu().view(h, w, 2).clamp(-3, 3) + 1) / 2 * side_px).tolist()
    rows = sorted({round(i * (h - 1) / (lines - 1)) for i in range(lines)})
    columns = sorted({round(i * (w - 1) / (lines - 1)) for i in range(lines)})
    for i in rows:
        draw.line([tuple(points[i][j]) for j in range(w)], fill=GRID_COLOUR)
    for j in columns:
        draw.line([tuple(points[i][j]) for i in range(h)], fill=GRID_COLOUR)
    return picture


def box_tile(image: Tensor, matrix: Tensor, side_px: int) -> Image.Image:
    """The image with the quadrilateral to which an affine map (2, 3), target -> source, maps the output's edges."""
    picture = tile(image, side_px)
    corners = matrix.new_tensor([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]])
    points = ((corners @ matrix.T).detach().float().cpu().clamp(-3, 3) + 1) / 2 * (side_px - 1)
    line = [tuple(point) for point in points.tolist()]
    ImageDraw.Draw(picture).line([*line, line[0]], fill=GRID_COLOUR, width=2)
    return picture


def boxes(image: Tensor, windows: Tensor, side_px: int) -> Image.Image:
    """The image with up to four windows (N, 4), each (x0, y0, x1, y1) in [-1, 1], as coloured boxes (Table 3 right)."""
    picture = tile(image, side_px)
    pen = ImageDraw.Draw(picture)
    for window, colour in zip(windows.detach().float().cpu(), BOX_COLOURS, strict=False):
        x0, y0, x1, y1 = ((window + 1) / 2 * (side_px - 1)).tolist()
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=3)
    return picture


def stack(rows: list[list[Image.Image]], gap_px: int = GAP_PX) -> Image.Image:
    """Pictures of equal size in rows and columns on white."""
    w, h = rows[0][0].size
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (w + gap_px) - gap_px, len(rows) * (h + gap_px) - gap_px), "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(picture, (j * (w + gap_px), i * (h + gap_px)))
    return sheet


def rows(named: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Rows of pictures of equal width on white, with the name of each row on its left."""
    margin = max(round(FONT.getlength(name)) for name, _ in named) + 12
    w, columns = named[0][1][0].width + GAP_PX, max(len(row) for _, row in named)
    heights = [row[0].height + GAP_PX for _, row in named]
    page = Image.new("RGB", (margin + columns * w - GAP_PX, sum(heights) - GAP_PX), "white")
    pen, top = ImageDraw.Draw(page), 0
    for (name, row), height in zip(named, heights, strict=True):
        pen.text((4, top + (height - GAP_PX) / 2), name, fill="black", font=FONT, anchor="lm")
        for i, picture in enumerate(row):
            page.paste(picture, (margin + i * w, top))
        top += height
    return page


def warps(u: Tensor, source: Tensor, v: Tensor, side_px: int = 112) -> Image.Image:
    """Three rows for a batch: (a) the input u, (b) the predicted grid on it, (c) the output v (Figure 1 a-c)."""
    size = (v.shape[-2], v.shape[-1])
    return stack([
        [tile(x, side_px) for x in u],
        [grid_tile(x, s, size, side_px) for x, s in zip(u, source, strict=True)],
        [tile(y, side_px) for y in v],
    ])  # fmt: skip


def words(text: str, width_px: int, wrong: bool = False) -> Image.Image:
    """One line of text, centred on a white strip.  `wrong` changes its colour; the text should say so, too."""
    page = Image.new("RGB", (width_px, TEXT_PX), "white")
    fill = WRONG if wrong else "black"
    ImageDraw.Draw(page).text((width_px / 2, TEXT_PX / 2), text, fill=fill, font=FONT, anchor="mm")
    return page


def classes(predicted: Sequence[str], truth: Sequence[str], width_px: int) -> list[Image.Image]:
    """The predicted classes, one strip each; "3, not 5" if 5 is right."""
    pairs = zip(predicted, truth, strict=True)
    return [words(p if p == t else f"{p}, not {t}", width_px, wrong=p != t) for p, t in pairs]


def below(picture: Image.Image, strip: Image.Image) -> Image.Image:
    """The picture with a strip below it."""
    page = Image.new("RGB", (picture.width, picture.height + strip.height), "white")
    page.paste(picture, (0, 0))
    page.paste(strip, (0, picture.height))
    return page


def caption(picture: Image.Image, text: str, wrong: bool = False) -> Image.Image:
    """The picture with one line of text below it."""
    return below(picture, words(text, picture.width, wrong))


def legend(picture: Image.Image, names: Sequence[str]) -> Image.Image:
    """The picture with a legend of the BOX_COLOURS below it."""
    page = Image.new("RGB", (picture.width, picture.height + GAP_PX + TEXT_PX), "white")
    page.paste(picture, (0, 0))
    pen, x, y = ImageDraw.Draw(page), 2.0, picture.height + GAP_PX + TEXT_PX / 2
    for name, colour in zip(names, BOX_COLOURS, strict=False):
        pen.rectangle((x, y - 7, x + 14, y + 7), outline=colour, width=3)
        pen.text((x + 20, y), name, fill="black", font=FONT, anchor="lm")
        x += 38 + FONT.getlength(name)
    return page


VIEW_DEG = (-25.0, 35.0)  # rotation of a volume before it is drawn: about x, so that it is seen from above, then y
EDGES = [
    (i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit
]  # of a box, whose corners are 3-bit numbers


def view() -> tuple[Tensor, float]:
    """The rotation R (3, 3) from volume to picture, both (x, y, z) with z into the screen; half the side of its box."""
    a, b = (math.radians(angle) for angle in VIEW_DEG)
    about_x = torch.tensor([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = torch.tensor([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    turn = about_x @ about_y
    return turn, turn.abs().sum(1).max().item()


def volume_tile(volume: Tensor, side_px: int, window: Tensor | None = None) -> Image.Image:
    """One volume (1, D, H, W) with values in [0, 1] as a solid in its box, in parallel projection.

    A ray ends where it first meets half of the brightest value.  The light comes from the upper left.  `window`, the 8
    corners (x, y, z) of a sampling grid, is drawn as a second box.
    """
    turn, extent = view()
    shape = (side_px,) * 3
    volume = volume.detach().float().cpu()
    theta = torch.cat([turn.T * extent, torch.zeros(3, 1)], dim=1).view(1, 12)
    seen = sample(volume[None], Affine3d()(theta, regular_grid(shape)), shape)[0, 0]
    solid = seen >= 0.5 * volume.max().clamp(min=1e-6)
    first = solid.float().argmax(0, keepdim=True)
    smooth = F.avg_pool3d(seen[None], 5, 1, 2)[0]
    outward = torch.stack([-slope.gather(0, first)[0] for slope in torch.gradient(smooth)])  # z, y, x
    light = F.normalize(torch.tensor([-1.0, -0.7, -0.5]), dim=0)
    lit = (F.normalize(outward, dim=0) * light[:, None, None]).sum(0).clamp(min=0)
    grey = torch.where(solid.any(0), 0.25 + 0.75 * lit, 0.0)
    picture = Image.fromarray((grey * 255).byte().numpy()).convert("RGB")
    pen = ImageDraw.Draw(picture)
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=3)))
    for box, colour in ((corners, BOX_COLOUR), (window, GRID_COLOUR)):
        if box is not None:
            points = ((box @ turn.T / extent + 1) / 2 * (side_px - 1))[:, :2].tolist()
            for i, j in EDGES:
                pen.line([tuple(points[i]), tuple(points[j])], fill=colour)
    return picture


def volume_warps(u: Tensor, source: Tensor, v: Tensor, side_px: int = 112) -> Image.Image:
    """Figure 5, three rows: the volume u with the sampled window, the output v, and v summed over its depth."""
    grid = source.detach().float().cpu().unflatten(1, v.shape[2:])
    window = grid[:, :: v.shape[2] - 1, :: v.shape[3] - 1, :: v.shape[4] - 1].reshape(len(u), 8, 3)
    image = v.sum(2)
    return stack([
        [volume_tile(x, side_px, w) for x, w in zip(u, window, strict=True)],
        [volume_tile(y, side_px) for y in v],
        [tile(y / y.max().clamp(min=1e-6), side_px) for y in image],
    ])  # fmt: skip
