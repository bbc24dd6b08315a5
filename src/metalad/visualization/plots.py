"""Curves and bars as SVG text for a page; the SVG uses the colors and fonts of the page.

In a page, the CSS variables --plot-ink, --plot-faint and --plot-1 ... --plot-4 set the colors, so that a dark page
has light axes. Outside a page, the SVG uses fallback colors for a white background.
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
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib draws with these placeholder colors. Each is replaced by a CSS variable with a fallback color in the SVG.
_VARIABLES = {
    "#010203": ("--plot-ink", "#39424e"),
    "#010204": ("--plot-faint", "#d5dae1"),
    "#010205": ("--plot-1", "#2f6f9f"),
    "#010206": ("--plot-2", "#c26a2d"),
    "#010207": ("--plot-3", "#6d8b3c"),
    "#010208": ("--plot-4", "#8a5a9e"),
}
_INK, _FAINT, *_LINES = _VARIABLES
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))  # so that curves differ without color, too

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
class Curve:
    """A curve to plot; `name` is one of pixel_roc, image_roc, pixel_pro, pixel_pr, image_pr, or free text."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    area: float | None = None


@dataclass(frozen=True)
class CurveKind:
    """Labels of a curve with a known name; `limit` is the false-alarm rate up to which its area is computed."""

    title: str
    xlabel: str
    ylabel: str
    limit: float | None = None


CURVE_KINDS = {
    "pixel_roc": CurveKind("Pixel ROC", "false-alarm rate of pixels", "detected defect pixels", 0.3),
    "pixel_pro": CurveKind("Region overlap (PRO)", "false-alarm rate of pixels", "mean overlap of regions", 0.3),
    "pixel_pr": CurveKind("Pixel precision and recall", "recall", "precision"),
    "image_roc": CurveKind("Image ROC", "false-alarm rate of images", "detected defective images"),
    "image_pr": CurveKind("Image precision and recall", "recall", "precision"),
}


@dataclass(frozen=True)
class Plot:
    """One plot in the page."""

    title: str
    svg: Markup


def curve_plots(curves: Iterable[tuple[str, Curve]], group: str = "") -> Iterator[Plot]:
    """Yield one plot for each kind of curve, in order of first occurrence.

    Args:
        curves: pairs of a legend entry and a curve.
        group: added to the titles, to distinguish several plots of the same kind on one page.
    """
    by_kind: dict[str, list[Curve]] = {}
    for legend, curve in curves:
        by_kind.setdefault(curve.name, []).append(Curve(legend, curve.x, curve.y, curve.area))
    for name, group_curves in by_kind.items():
        kind = CURVE_KINDS.get(name, CurveKind(name, "x", "y"))
        title = f"{kind.title}, {group}" if group else kind.title
        yield Plot(title, Markup(curve_plot(group_curves, title, kind.xlabel, kind.ylabel, kind.limit)))


def curve_plot(curves: Sequence[Curve], title: str, xlabel: str, ylabel: str, limit: float | None = None) -> str:
    """Plot curves over the unit square, with their areas in the legend. The region up to x = `limit` is shaded."""

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
                # Colors repeat after 4 curves, combinations of color and dash pattern after 16.
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


def bar_plot(names: Sequence[str], bars: Mapping[str, Sequence[float | None]], title: str, xlabel: str) -> str:
    """Plot fractions as horizontal bars in percent, one per name in each group of `bars`; None has no bar."""
    positions = np.arange(len(names))
    height = 0.8 / max(len(bars), 1)

    def draw(axes: "Axes") -> None:
        for index, (group, values) in enumerate(bars.items()):
            axes.barh(
                positions + (index - (len(bars) - 1) / 2) * height,
                [math.nan if value is None else 100 * value for value in values],
                height,
                color=_LINES[index % len(_LINES)],
                label=group,
                linewidth=0,
            )
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(positions, names)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=xlabel)
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(bars))  # above the axes

    return _svg(draw, title)


def _svg(draw: Callable[["Axes"], None], title: str) -> str:
    # pyplot is not used: it keeps a global list of figures and may need a window system. Only the style is global.
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
    # The style sheet of matplotlib applies to `*`, which would be every element of the page.
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    for color, (variable, fallback) in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable}, {fallback})")
    # A page contains several plots, so their ids must differ.
    prefix = f"p{hashlib.sha256(f'{title}{svg}'.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}", svg)
    label = html.escape(title, quote=True)
    opening = f'<svg class="plot" role="img" aria-label="{label}" stroke-linejoin="round"'
    return svg.replace("<svg", opening, 1).strip()


def percent(value: float | None, undefined: str = "–") -> str:
    """Return a fraction as a percentage with two decimals and no sign: 0.98634 gives '98.63'; None gives a dash."""
    return undefined if value is None or math.isnan(value) else f"{100 * value:.2f}"
