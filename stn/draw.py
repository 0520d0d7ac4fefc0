"""Pictures of what a spatial transformer does, as PIL images: fast enough to make while a network trains."""

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GRID_COLOUR = (255, 80, 60)
BOX_COLOURS = ((230, 30, 30), (30, 180, 60), (40, 90, 240), (240, 170, 20))  # of windows 1 to 4: Table 3 right
GAP_PX = 4
LABEL_PX = 96


def tile(image: Tensor, side_px: int) -> Image.Image:
    """One image (C, H, W) with values in [0, 1], C 1 or 3, as a square of side_px with hard pixel edges."""
    array = (image.detach().float().cpu().clamp(0, 1) * 255).byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    return Image.fromarray(array).resize((side_px, side_px), Image.Resampling.NEAREST)


def grid_tile(image: Tensor, source: Tensor, size: tuple[int, int], side_px: int, lines: int = 9) -> Image.Image:
    """The image with the sampling grid T_theta(G) of an output of `size` (H', W') drawn over it, `lines` each way."""
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


def boxes(image: Tensor, windows: Tensor, side_px: int) -> Image.Image:
    """The image with up to four windows (N, 4), each (x0, y0, x1, y1) in [-1, 1], as coloured boxes (Table 3 right)."""
    picture = tile(image, side_px)
    pen = ImageDraw.Draw(picture)
    for window, colour in zip(windows.detach().float().cpu(), BOX_COLOURS, strict=False):
        x0, y0, x1, y1 = ((window + 1) / 2 * (side_px - 1)).tolist()
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=3)
    return picture


def stack(rows: list[list[Image.Image]], gap_px: int = GAP_PX) -> Image.Image:
    """Pictures of one size laid out in rows and columns on white."""
    w, h = rows[0][0].size
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (w + gap_px) - gap_px, len(rows) * (h + gap_px) - gap_px), "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(picture, (j * (w + gap_px), i * (h + gap_px)))
    return sheet


def warps(u: Tensor, source: Tensor, v: Tensor, side_px: int = 112) -> Image.Image:
    """Three rows for a batch: (a) the input u, (b) the predicted grid on it, (c) the output v (Figure 1 a-c)."""
    size = (v.shape[-2], v.shape[-1])
    return stack([
        [tile(x, side_px) for x in u],
        [grid_tile(x, s, size, side_px) for x, s in zip(u, source, strict=True)],
        [tile(y, side_px) for y in v],
    ])  # fmt: skip


def label(sheet: Image.Image, rows: list[str]) -> Image.Image:
    """A `stack` with one line of text to the left of each row."""
    page = Image.new("RGB", (sheet.width + LABEL_PX, sheet.height), "white")
    page.paste(sheet, (LABEL_PX, 0))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    height = (sheet.height + GAP_PX) / len(rows)
    for i, text in enumerate(rows):
        pen.text((4, (i + 0.5) * height - GAP_PX / 2), text, fill="black", font=font, anchor="lm")
    return page


def caption(picture: Image.Image, text: str, colour: str = "black") -> Image.Image:
    """The picture with one line of text below it."""
    page = Image.new("RGB", (picture.width, picture.height + 20), "white")
    page.paste(picture, (0, 0))
    ImageDraw.Draw(page).text(
        (page.width / 2, page.height - 10), text, fill=colour, font=ImageFont.load_default(14), anchor="mm"
    )
    return page
