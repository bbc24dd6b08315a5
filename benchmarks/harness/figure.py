"""Combine the strips that the cells of a suite have drawn into one picture. No torch here."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness.declaration import Suite
from metalad.data.images import read_image, write_image
from metalad.visualization.sheet import QUIET, Caption, Sheet, concatenate_horizontally, concatenate_vertically, sheet

HEADINGS = ("", "image", "ground truth", "reconstruction", "raw map", "calibrated map", "overlay")
WIDTHS = (132, 128, 128, 128, 128, 128, 128)
GAP = 8
PAGE = math.sqrt(2)
"""Approximate height over width of the picture; its categories are distributed over columns to reach it."""

LEGEND = (
    "For each defect type, the image of median score. Colors: from a third of the threshold to three times the "
    "threshold, logarithmic. The turquoise outline marks where the map exceeds the threshold."
)


def strip_path(runs: Path, key: str) -> Path:
    """Return the file of a cell's strip in the suite's folder of work folders."""
    return runs / f"{key}.png"


def compose(path: Path, suite: Suite, strips: Mapping[str, Path], absent: Sequence[str]) -> Path | None:
    """Draw the suite's picture from the strips, given by cell name, and list the absent ones; None: no strips.

    Raises:
        RunError: the picture cannot be written. ImageError: a strip is damaged.
    """
    if not strips:
        return None
    blocks = [read_image(file) for file in strips.values()]
    columns = [concatenate_vertically([_headings(), *column]) for column in in_columns(blocks)]
    body = concatenate_horizontally(columns)
    lines = [LEGEND, *([f"No images or no finished run: {', '.join(absent)}."] if absent else [])]
    width = body.shape[1] - 2 * GAP
    title = sheet([[Caption(((f"{suite.name}: {suite.summary}", 20, QUIET),))]], [width], GAP)
    footer = sheet([[Caption(tuple((line, 13, QUIET) for line in _wrapped(lines, width)))]], [width], GAP)
    write_image(path, concatenate_vertically([title, body, footer]))
    return path


def in_columns(blocks: Sequence[Sheet]) -> list[list[Sheet]]:
    """Distribute blocks over the number of columns that brings the picture nearest to `PAGE`, keeping their order."""
    heights = [block.shape[0] for block in blocks]
    width = max(block.shape[1] for block in blocks)

    def split(count: int) -> list[list[int]]:
        target = sum(heights) / count
        middles = np.cumsum(heights) - np.array(heights) / 2
        column = np.minimum((middles / target).astype(int), count - 1)
        return [np.flatnonzero(column == number).tolist() for number in sorted(set(column.tolist()))]

    def deviation(columns: list[list[int]]) -> float:
        height = max(sum(heights[index] for index in column) for column in columns)
        return abs(math.log(height / (width * len(columns)) / PAGE))

    best = min((split(count) for count in range(1, len(blocks) + 1)), key=deviation)
    return [[blocks[index] for index in column] for column in best]


def _headings() -> Sheet:
    return sheet([[Caption(((heading, 14, QUIET),)) for heading in HEADINGS]], WIDTHS, GAP)


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, max(20, width // 7))]
