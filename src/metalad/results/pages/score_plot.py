"""The histogram of image scores in a report, on an axis along which the page moves the threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from metalad.results.pages.page import digits
from metalad.results.report import Report

BINS = 48
MARGIN = 0.02
"""Free part of the axis on each side, so that the threshold can be moved below and above all scores."""
LOG_SPAN = 30.0
"""If the maximum exceeds the minimum by more than this factor, the axis is logarithmic."""
LEAST_HEIGHT = 0.02
"""Height of the lowest bars: one image among thousands stays visible."""
MAX_TICKS = 7


@dataclass(frozen=True)
class Bar:
    """A bar in units of the plot, [0, 1]: `good` and `defective` are stacked; the counts are for its title."""

    left: float
    width: float
    good: float
    defective: float
    title: str


@dataclass(frozen=True)
class ScorePlot:
    """The axis from `low` to `high`, its bars, its ticks (position in [0, 1], text), and the largest count of a bar."""

    low: float
    high: float
    logarithmic: bool
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    most: int

    def position(self, score: float) -> float:
        """Return where a score lies on the axis, between 0 and 1."""
        if math.isnan(score):
            return 1.0
        low, high, at = (_log(value, self.logarithmic) for value in (self.low, self.high, score))
        return min(max((at - low) / (high - low), 0.0), 1.0)


def score_plot(report: Report) -> ScorePlot:
    """Return the histogram of the deciding scores; scores that are not finite are left out."""
    scores = np.array([image.score for image in report.images], np.float64)
    labels = np.array([image.label for image in report.images], bool)
    finite = np.isfinite(scores)
    low, high, logarithmic = _axis(np.append(scores[finite], report.chosen.threshold))
    edges = np.geomspace(low, high, BINS + 1) if logarithmic else np.linspace(low, high, BINS + 1)
    good, _ = np.histogram(scores[finite & ~labels], edges)
    defective, _ = np.histogram(scores[finite & labels], edges)
    most = max(1, int((good + defective).max()))
    empty = ScorePlot(low, high, logarithmic, (), (), most)
    bars = tuple(
        Bar(index / BINS, 1 / BINS, _height(first, most), _height(second, most), _title(edges, index, first, second))
        for index, (first, second) in enumerate(zip(good.tolist(), defective.tolist(), strict=True))
        if first or second
    )
    ticks = tuple((empty.position(value), f"{value:.4g}") for value in _ticks(low, high, logarithmic))
    return ScorePlot(low, high, logarithmic, bars, ticks, most)


def _axis(values: Float64[np.ndarray, " n"]) -> tuple[float, float, bool]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0, False
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > LOG_SPAN:
        factor = (high / low) ** MARGIN
        return low / factor, high * factor, True
    # If all scores are equal, the axis still needs a length.
    margin = MARGIN * (high - low) if high > low else 0.05 * max(abs(high), 1e-9)
    return low - margin, high + margin, False


def _height(count: int, most: int) -> float:
    return max(count / most, LEAST_HEIGHT) if count else 0.0


def _title(edges: Float64[np.ndarray, " edges"], index: int, good: int, defective: int) -> str:
    return f"{digits(float(edges[index]))} to {digits(float(edges[index + 1]))}: {good} good, {defective} defective"


def _ticks(low: float, high: float, logarithmic: bool) -> Sequence[float]:
    if not logarithmic:
        step = 10.0 ** math.floor(math.log10((high - low) / 3))
        step *= next(factor for factor in (10, 5, 2, 1) if (high - low) / (factor * step) >= 3 or factor == 1)
        return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wanted = [factor * 10.0**decade for decade in decades for factor in ((1, 2, 5) if high / low < 1000 else (1,))]
    inside = [value for value in wanted if low <= value <= high]
    return inside[:: math.ceil(len(inside) / MAX_TICKS) or 1]


def _log(value: float, logarithmic: bool) -> float:
    if not logarithmic:
        return value
    return math.log(value) if value > 0 else -math.inf
