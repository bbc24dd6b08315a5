"""Put what the cells of a suite drew together into one picture. No torch here."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metalad.data.images import read_image, write_image
from metalad.pipelines.benchmark.declaration import Suite
from metalad.visualization.sheet import QUIET, Caption, Sheet, beside, sheet, stacked

HEADINGS = ("", "image", "ground truth", "reconstruction", "raw map", "calibrated map", "overlay")
WIDTHS = (132, 128, 128, 128, 128, 128, 128)
GAP = 8
PAGE = math.sqrt(2)
"""Height over width that the picture comes near to, by laying its categories out in columns."""

LEGEND = (
    "Of each kind of defect the image of middle score. Colours: a third of the threshold to three times it, in equal "
    "ratios. The turquoise outline is where the map exceeds the threshold."
)


def strip(runs: Path, key: str) -> Path:
    """Where the cell of this key leaves its part of the picture, below the suite's folder for work."""
    return runs / f"{key}.png"


def compose(path: Path, suite: Suite, strips: Mapping[str, Path], absent: Sequence[str]) -> Path | None:
    """Draw the suite's picture of the cells' strips, by name in order; name what is absent. None: there are no strips.

    Raises:
        RunError: the picture cannot be written. ImageError: a strip is damaged.
    """
    if not strips:
        return None
    blocks = [read_image(file) for file in strips.values()]
    columns = [stacked([_headings(), *column]) for column in in_columns(blocks)]
    body = beside(columns)
    lines = [LEGEND, *([f"Without images or a finished run: {', '.join(absent)}."] if absent else [])]
    width = body.shape[1] - 2 * GAP
    title = sheet([[Caption(((f"{suite.name}: {suite.summary}", 20, QUIET),))]], [width], GAP)
    foot = sheet([[Caption(tuple((line, 13, QUIET) for line in _wrapped(lines, width)))]], [width], GAP)
    write_image(path, stacked([title, body, foot]))
    return path


def in_columns(blocks: Sequence[Sheet]) -> list[list[Sheet]]:
    """Lay blocks out in as many columns as bring the whole nearest to `PAGE`, keeping their order."""
    heights = [block.shape[0] for block in blocks]
    width = max(block.shape[1] for block in blocks)

    def split(count: int) -> list[list[int]]:
        goal = sum(heights) / count
        middles = np.cumsum(heights) - np.array(heights) / 2
        places = np.minimum((middles / goal).astype(int), count - 1)
        return [np.flatnonzero(places == number).tolist() for number in sorted(set(places.tolist()))]

    def oddness(columns: list[list[int]]) -> float:
        height = max(sum(heights[index] for index in column) for column in columns)
        return abs(math.log(height / (width * len(columns)) / PAGE))

    best = min((split(count) for count in range(1, len(blocks) + 1)), key=oddness)
    return [[blocks[index] for index in column] for column in best]


def _headings() -> Sheet:
    return sheet([[Caption(((heading, 14, QUIET),)) for heading in HEADINGS]], WIDTHS, GAP)


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, max(20, width // 7))]
