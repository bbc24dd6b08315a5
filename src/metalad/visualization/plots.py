"""Curves and histograms as SVG text that fits into a page: its colours and fonts follow the page's.

Inside a page the CSS variables --plot-ink, --plot-faint and --plot-1 ... --plot-4 set the colours (so a dark
page has light axes); outside one the SVG falls back to colours for a white ground.
"""

import hashlib
import html
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from markupsafe import Markup

from metalad.results.report import Curve, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with; in the finished SVG each becomes a CSS variable with a fallback.
_VARIABLES = {
    "#010203": ("--plot-ink", "#39424e"),
    "#010204": ("--plot-faint", "#d5dae1"),
    "#010205": ("--plot-1", "#2f6f9f"),
    "#010206": ("--plot-2", "#c26a2d"),
    "#010207": ("--plot-3", "#6d8b3c"),
    "#010208": ("--plot-4", "#8a5a9e"),
}
_INK, _FAINT, *_LINES = _VARIABLES
_GOOD, _ABNORMAL = _LINES[0], _LINES[1]
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))  # also told apart without colour

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metalad",
    "text.parse_math": False,
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class CurveKind:
    """How a curve of a known name is labelled; `limit` is the false-alarm rate up to which it counts."""

    title: str
    xlabel: str
    ylabel: str
    limit: float | None = None


CURVE_KINDS = {
    "pixel_roc": CurveKind("Pixel ROC", "false-alarm rate of pixels", "defect pixels found", 0.3),
    "pixel_pro": CurveKind("Region overlap (PRO)", "false-alarm rate of pixels", "mean overlap of regions", 0.3),
    "pixel_pr": CurveKind("Pixel precision and recall", "recall", "precision"),
    "image_roc": CurveKind("Image ROC", "false-alarm rate of images", "defective images found"),
    "image_pr": CurveKind("Image precision and recall", "recall", "precision"),
}


@dataclass(frozen=True)
class Plot:
    """One plot in the page."""

    title: str
    svg: Markup


# Scores that span more than this factor are binned on a logarithmic axis.
_LOG_SPAN = 30.0


def curve_plots(curves: Iterable[tuple[str, Curve]], group: str = "") -> Iterator[Plot]:
    """One plot for each kind of curve, in the order of their coming; a curve comes with its name in the legend.

    `group` tells these plots from others of the same kinds on the page.
    """
    together: dict[str, list[Curve]] = {}
    for legend, curve in curves:
        together.setdefault(curve.name, []).append(Curve(legend, curve.x, curve.y, curve.area))
    for name, same in together.items():
        kind = CURVE_KINDS.get(name, CurveKind(name, "x", "y"))
        title = f"{kind.title}, {group}" if group else kind.title
        yield Plot(title, Markup(curve_plot(same, title, kind.xlabel, kind.ylabel, kind.limit)))


def curve_plot(curves: Sequence[Curve], title: str, xlabel: str, ylabel: str, limit: float | None = None) -> str:
    """Curves over the unit square, with their areas in the legend; the part up to x = `limit` is shaded."""

    def draw(axes: "Axes") -> None:
        if limit is not None:
            axes.axvspan(0, limit, color=_FAINT, alpha=0.35, linewidth=0)
            axes.axvline(limit, color=_INK, linewidth=0.8, linestyle=":")
        for index, curve in enumerate(curves):
            area = "" if curve.area is None else f"  {percent(curve.area)} %"
            axes.plot(
                curve.x,
                curve.y,
                color=_LINES[index % len(_LINES)],
                # Colours repeat after four curves, colours with dashes after sixteen.
                linestyle=_DASHES[(index + index // len(_LINES)) % len(_DASHES)],
                linewidth=1.8,
                label=f"{curve.name}{area}",
                clip_on=False,
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=xlabel, ylabel=ylabel)
        axes.grid(True)
        if curves:
            axes.legend(loc="best")

    return _svg(draw, title)


def score_histogram(good: Sequence[float], abnormal: Sequence[float], threshold: float) -> str:
    """How many good and how many abnormal images got which score; the threshold is a labelled line."""
    from matplotlib.ticker import MaxNLocator

    edges, logarithmic = _bins(np.array([*good, *abnormal, threshold], dtype=np.float64))

    def draw(axes: "Axes") -> None:
        for scores, name, colour in ((good, "good", _GOOD), (abnormal, "defective", _ABNORMAL)):
            finite = [score for score in scores if math.isfinite(score)]
            axes.hist(
                finite,
                bins=edges.tolist(),
                color=colour,
                alpha=0.62,
                label=f"{name}  {len(scores)}",
                linewidth=0,
            )
        if math.isfinite(threshold):
            axes.axvline(threshold, color=_INK, linewidth=1.4, linestyle="--", gid="threshold")
            axes.annotate(
                f"threshold {threshold:.4g}",
                (threshold, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
            )
        if logarithmic:
            axes.set_xscale("log")
        axes.set(xlabel="score (logarithmic)" if logarithmic else "score", ylabel="images")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, axis="y")
        axes.set_axisbelow(True)
        axes.legend(loc="best")

    return _svg(draw, "Image scores")


def bar_plot(names: Sequence[str], bars: Mapping[str, Sequence[float | None]], title: str, xlabel: str) -> str:
    """Fractions as lying bars in percent, one a name in each group of `bars`; None has no bar."""
    places = np.arange(len(names))
    height = 0.8 / max(len(bars), 1)

    def draw(axes: "Axes") -> None:
        for index, (group, values) in enumerate(bars.items()):
            axes.barh(
                places + (index - (len(bars) - 1) / 2) * height,
                [math.nan if value is None else 100 * value for value in values],
                height,
                color=_LINES[index % len(_LINES)],
                label=group,
                linewidth=0,
            )
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=xlabel)
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(bars))  # no bar runs under it

    return _svg(draw, title)


def _bins(values: Float64[np.ndarray, " n"], count: int = 36) -> tuple[Float64[np.ndarray, " edges"], bool]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.linspace(0.0, 1.0, count + 1), False
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > _LOG_SPAN:
        return np.geomspace(low, high, count + 1), True
    # Equal scores still need a bin with a width.
    margin = 0.0 if high > low else max(abs(high), 1.0) * 0.05
    return np.linspace(low - margin, high + margin, count + 1), False


def _svg(draw: Callable[["Axes"], None], title: str) -> str:
    # Without pyplot: no global figure list, no window system, safe from any thread but for the style.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.3), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        return _for_page(_render(figure), title)


def _render(figure: "Figure") -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _for_page(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib styles `*`, which inside a page would be every element of it.
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    for colour, (variable, fallback) in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable}, {fallback})")
    # Several plots share a page, so their ids must differ.
    prefix = f"p{hashlib.sha256(f'{title}{svg}'.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}", svg)
    label = html.escape(title, quote=True)
    opening = f'<svg class="plot" role="img" aria-label="{label}" stroke-linejoin="round"'
    return svg.replace("<svg", opening, 1).strip()
