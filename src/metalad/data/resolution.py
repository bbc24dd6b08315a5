"""The size that a model resizes images to, chosen from the sizes of the good images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from metalad.data.framing import Framing
from metalad.runtime.choices import Resolution
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import check_choice, number

REDUCTIONS: dict[Resolution, float] = {"fast": 5.0, "balanced": 3.5, "fine": 1.75}
"""Factor by which large images are reduced at most; 900×900 and less are resized to a side of 256 by `balanced`. The
time per image then grows with the number of its own pixels."""
SHORT_SIDES: dict[Resolution, float] = {"fast": 0.75, "balanced": 1.0, "fine": 1.5}
"""The least shorter side, as a multiple of the method's default side."""
MAX_AREAS: dict[Resolution, float] = {"fast": 2.0, "balanced": 4.0, "fine": 12.0}
"""The largest area, in squares of the method's default side: bounds time and memory."""
MAX_DEFECT_AREA = 24.0
"""The same where the size of the smallest defect is given."""
DEFECT_PIXELS = 8.0
"""Pixels, after resizing, that the smallest defect has across: one position of the features of stride 8."""
MAX_DISTORTION = 1.5
"""Ratio between the most different aspect ratios of the images from which on resizing to one shape is reported."""
MAX_HEADERS = 512
"""Images whose headers are read, spread evenly."""


@dataclass(frozen=True)
class ChosenSize:
    """A height and width to resize to, and how it was chosen.

    scale: resized pixels per pixel of a median image. typical: height and width of a median image. distortion: ratio
    between the extreme aspect ratios of the images (90 % of them lie between the extremes). one_scale: the alternative
    that keeps the shape of each image (see `metalad.data.framing`), of at most the same area as `MAX_AREAS` allows.
    wanted_defect: width of the smallest defect that matters, in pixels of a median image; None if not given.
    """

    size: tuple[int, int]
    scale: float
    typical: tuple[int, int]
    distortion: float
    one_scale: Framing
    wanted_defect: float | None = None

    def lines(self) -> list[str]:
        """Return the choice in words, with a warning where images of different shapes are distorted."""
        height, width = self.size
        own = f"{self.typical[0]}x{self.typical[1]}"
        which = f"images of {own} (height x width)"
        if self.distortion > 1:
            which = f"images of various sizes, in the median {own} (height x width),"
        lines = [
            f"image_size: {which} are resized to {height}x{width}, {self.scale:.0%} of their size; {self._defect()}"
        ]
        if self.distortion > MAX_DISTORTION:
            lines.append(
                f"the aspect ratios of the images differ by a factor of {self.distortion:.1f}; all are resized to "
                f"{height}x{width}, which distorts some; crop them to one shape if you can, or compare with "
                f"{self._settings_of_one_scale()}, which keep the shape of each"
            )
        return lines

    def _defect(self) -> str:
        smallest = DEFECT_PIXELS / self.scale
        text = f"a defect should be {max(1, round(smallest))} or more of their pixels across"
        if self.wanted_defect is None:
            return f"{text} (see --smallest-defect)"
        if smallest <= 1.1 * self.wanted_defect:
            return text
        reason = "images are not enlarged" if self.scale > 0.9 else "a larger size would take too much time and memory"
        return f"{text}, {self.wanted_defect:g} as wanted cannot be reached: {reason}"

    def _settings_of_one_scale(self) -> str:
        height, width = self.one_scale.size
        return f"--set image_size={height},{width} --set image_scale={self.one_scale.scale:.3g}"


def choose_size(
    sizes: Sequence[tuple[int, int]],
    side: int,
    multiple: int,
    resolution: Resolution = "balanced",
    smallest_defect: float | None = None,
) -> ChosenSize:
    """Choose a height and a width that keep the aspect ratio of the images, in multiples of `multiple` pixels.

    The shorter side is `side` (scaled by `SHORT_SIDES`), or more for large images (`REDUCTIONS`). With
    `smallest_defect`, it is instead such that this many pixels of an image become `DEFECT_PIXELS`, but never larger
    than the images themselves.

    Args:
        sizes: height and width of the good images, at least one.
        side: side of the square that the method resizes images to by default, in pixels.
        multiple: of which height and width must be multiples.
        resolution: fast, balanced or fine.
        smallest_defect: width of the smallest defect that matters, in pixels of the images.

    Raises:
        ConfigError: no such resolution, or `smallest_defect` is not positive.
    """
    check_choice("resolution", resolution, Resolution)
    if smallest_defect is not None and not 0 < number("smallest_defect", smallest_defect) < math.inf:
        raise ConfigError(f"smallest_defect is {smallest_defect}; it is a width in pixels, above 0")
    shapes = np.array(sizes, dtype=float)
    ratios = shapes[:, 0] / shapes[:, 1]
    ratio = float(np.exp(np.median(np.log(ratios))))
    short = float(np.median(shapes.min(1)))
    wanted = max(side * SHORT_SIDES[resolution], short / REDUCTIONS[resolution])
    area = MAX_AREAS[resolution] * side**2
    if smallest_defect is not None:
        wanted = max(side * SHORT_SIDES["fast"], min(short * DEFECT_PIXELS / smallest_defect, short))
        area = MAX_DEFECT_AREA * side**2
    wanted = min(wanted, math.sqrt(area / max(ratio, 1 / ratio)))
    height, width = _rounded((wanted * max(ratio, 1.0), wanted * max(1 / ratio, 1.0)), multiple)
    low, high = np.quantile(ratios, [0.05, 0.95])
    typical = (round(short * max(ratio, 1.0)), round(short * max(1 / ratio, 1.0)))
    one_scale = _one_scale(shapes, wanted / short, multiple, area)
    scale = min(height, width) / short
    return ChosenSize((height, width), scale, typical, float(high / low), one_scale, smallest_defect)


def _rounded(target: tuple[float, float], multiple: int) -> tuple[int, int]:
    height, width = (max(multiple, round(each / multiple) * multiple) for each in target)
    return height, width


def _one_scale(shapes: Float[np.ndarray, "images 2"], scale: float, multiple: int, area: float) -> Framing:
    """Return a size that nineteen of twenty heights and widths fit into at one scale; larger images are reduced."""
    height, width = np.quantile(shapes, 0.95, axis=0)
    scale = min(scale, math.sqrt(area / (height * width)))
    return Framing(_rounded((scale * height, scale * width), multiple), scale)
