"""Pictures and words in rows and columns, as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from metalad.visualization.pictures import Picture

INK, QUIET, RED, GREEN = "#1d242c", "#5c6773", "#a3261b", "#17694a"
TALLEST = 1.5
"""A picture is at most this much taller than its column is wide."""

Sheet = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class Words:
    """Lines of text below each other, each with its size in pixels and its colour."""

    lines: tuple[tuple[str, int, str], ...]


Cell = Picture | Words | None


def sheet(rows: Sequence[Sequence[Cell]], widths: Sequence[int], gap: int) -> Sheet:
    """Put rows of pictures and words on white, `gap` pixels apart and from the edge.

    A picture is shrunk to its column's width, never enlarged; a line of text that is too long is cut. A row is as high
    as its highest cell.

    Args:
        rows: each with a cell a column; None leaves it white.
        widths: of the columns, in pixels.
        gap: in pixels.
    """
    drawn = [[_draw(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    heights = [max((each.height for each in row if each is not None), default=0) for row in drawn]
    size = (sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(heights) + 1))
    whole = Image.new("RGB", size, "white")
    top = gap
    for row, height in zip(drawn, heights, strict=True):
        left = gap
        for each, width in zip(row, widths, strict=True):
            if each is not None:
                whole.paste(each, (left, top))
            left += width + gap
        top += height + gap
    return np.asarray(whole)


def stacked(sheets: Sequence[Sheet]) -> Sheet:
    """Put sheets below each other, white to the right of the narrower ones."""
    width = max((each.shape[1] for each in sheets), default=0)
    return np.concatenate([_widened(each, width) for each in sheets] or [np.zeros((0, 0, 3), np.uint8)])


def beside(sheets: Sequence[Sheet]) -> Sheet:
    """Put sheets beside each other, white below the lower ones."""
    return stacked([each.swapaxes(0, 1) for each in sheets]).swapaxes(0, 1)


def _widened(one: Sheet, width: int) -> Sheet:
    return np.pad(one, ((0, 0), (0, width - one.shape[1]), (0, 0)), constant_values=255)


def _draw(cell: Cell, width: int) -> Image.Image | None:
    if cell is None:
        return None
    if isinstance(cell, Words):
        return _written(cell, width)
    picture = Image.fromarray(np.ascontiguousarray(cell)).convert("RGB")
    picture.thumbnail((width, round(TALLEST * width)), Image.Resampling.LANCZOS)
    return picture


def _written(words: Words, width: int) -> Image.Image:
    leading = [round(1.35 * size) for _, size, _ in words.lines]
    drawn = Image.new("RGB", (width, max(1, sum(leading))), "white")
    draw, top = ImageDraw.Draw(drawn), 0
    for (text, size, colour), step in zip(words.lines, leading, strict=True):
        font = ImageFont.load_default(size)
        draw.text((0, top), _cut(text, font, width), colour, font)
        top += step
    return drawn


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(f"{kept}...") > width:
        kept = kept[:-1]
    return f"{kept}..."
