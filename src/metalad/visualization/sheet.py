"""Arrange pictures and captions in rows and columns of one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from metalad.visualization.pictures import Picture

INK, QUIET, RED, GREEN = "#1d242c", "#5c6773", "#a3261b", "#17694a"
MAX_ASPECT = 1.5
"""Maximum height of a picture, as a multiple of the width of its column."""

Sheet = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class Caption:
    """Lines of text below each other, each with its font size in pixels and its color."""

    lines: tuple[tuple[str, int, str], ...]


SheetCell = Picture | Caption | None


def sheet(rows: Sequence[Sequence[SheetCell]], widths: Sequence[int], gap: int) -> Sheet:
    """Arrange rows of pictures and captions on a white background.

    A picture that is wider than its column, or higher than `MAX_ASPECT` times that width, is shrunk; none is
    enlarged. A line of text that is too long is truncated. The height of a row is that of its highest cell.

    Args:
        rows: one cell per column; None leaves the cell white.
        widths: of the columns, in pixels.
        gap: distance between cells, and between the cells and the edge, in pixels.
    """
    rendered = [[_render_cell(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    heights = [max((each.height for each in row if each is not None), default=0) for row in rendered]
    size = (sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(heights) + 1))
    canvas = Image.new("RGB", size, "white")
    top = gap
    for row, height in zip(rendered, heights, strict=True):
        left = gap
        for each, width in zip(row, widths, strict=True):
            if each is not None:
                canvas.paste(each, (left, top))
            left += width + gap
        top += height + gap
    return np.asarray(canvas)


def concatenate_vertically(sheets: Sequence[Sheet]) -> Sheet:
    """Concatenate sheets vertically; the area to the right of narrower sheets is white."""
    width = max((each.shape[1] for each in sheets), default=0)
    return np.concatenate([_pad_to_width(each, width) for each in sheets] or [np.zeros((0, 0, 3), np.uint8)])


def concatenate_horizontally(sheets: Sequence[Sheet]) -> Sheet:
    """Concatenate sheets horizontally; the area below lower sheets is white."""
    return concatenate_vertically([each.swapaxes(0, 1) for each in sheets]).swapaxes(0, 1)


def _pad_to_width(narrow: Sheet, width: int) -> Sheet:
    return np.pad(narrow, ((0, 0), (0, width - narrow.shape[1]), (0, 0)), constant_values=255)


def _render_cell(cell: SheetCell, width: int) -> Image.Image | None:
    if cell is None:
        return None
    if isinstance(cell, Caption):
        return _render_caption(cell, width)
    picture = Image.fromarray(np.ascontiguousarray(cell)).convert("RGB")
    picture.thumbnail((width, round(MAX_ASPECT * width)), Image.Resampling.LANCZOS)
    return picture


def _render_caption(caption: Caption, width: int) -> Image.Image:
    line_heights = [round(1.35 * size) for _, size, _ in caption.lines]
    picture = Image.new("RGB", (width, max(1, sum(line_heights))), "white")
    draw, top = ImageDraw.Draw(picture), 0
    for (text, size, color), line_height in zip(caption.lines, line_heights, strict=True):
        font = ImageFont.load_default(size)
        draw.text((0, top), _truncate(text, font, width), color, font)
        top += line_height
    return picture


def _truncate(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    shortened = text
    while shortened and font.getlength(f"{shortened}...") > width:
        shortened = shortened[:-1]
    return f"{shortened}..."
