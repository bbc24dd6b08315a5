"""Render an HTML page from a template of this package, as a stream.

A page loads nothing from the network. Its content security policy makes the browser enforce this.
"""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import jinja2

from metalad.results.report import EvaluatedImage
from metalad.runtime.files import replacing
from metalad.visualization.plots import percent

METRIC_LABELS = {
    "pixel_auroc_fpr30": "Pixel AUROC, false alarms ≤ 30 %",
    "pixel_auroc": "Pixel AUROC",
    "pixel_aupro": "Pixel AUPRO, false alarms ≤ 30 %",
    "pixel_ap": "Pixel average precision",
    "pixel_f1max": "Pixel F1, maximum",
    "image_auroc": "Image AUROC",
    "image_ap": "Image average precision",
    "image_f1max": "Image F1, maximum",
}

MAX_DIGITS = 17
"""Significant digits that distinguish any two numbers in double precision."""


def write_html_page(
    path: Path, template: str, values: Mapping[str, object], before_replacing: Callable[[], None] | None = None
) -> None:
    """Render `template` (a file in templates/) to `path`, atomically; all values except `Markup` are escaped.

    The page is written while it is rendered, so the items of a generator are not all held in memory at the same time.
    `before_replacing` is called when the page is complete, before it replaces the former one.

    Raises:
        RunError: the file cannot be written.
    """
    stream = _environment().get_template(template).stream(values)
    # A file name that is not valid UTF-8 contains lone surrogates: write them as \\udc.. instead of failing.
    with replacing(path) as temporary:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as page:
            page.writelines(stream)
        if before_replacing:
            before_replacing()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["digits"] = digits
    return environment


def digits(value: float, threshold: float | None = None) -> str:
    """Format a score with four significant digits, and with more if it would look equal to another threshold.

    Trailing zeros are kept, so that a column of scores is aligned.
    """
    for count in range(4, MAX_DIGITS + 1):
        text = f"{value:#.{count}g}".removesuffix(".")
        if threshold is None or value == threshold or text != f"{threshold:#.{count}g}".removesuffix("."):
            break
    return text


def outcome(verdict: EvaluatedImage) -> str:
    """Return "correct", "false alarm" or "missed defect"."""
    if verdict.correct:
        return "correct"
    return "false alarm" if verdict.is_anomalous else "missed defect"


def name_and_folder(path: str) -> tuple[str, str]:
    """Split a path into its last part and its folder; the folder ends with a slash, or is empty."""
    posix_path = PurePosixPath(path)
    return posix_path.name or path, "" if str(posix_path.parent) == "." else f"{posix_path.parent}/"


def times_threshold(score: float, threshold: float) -> str:
    """Format a score as a multiple of its threshold; an empty string if the threshold is not above 0.

    Two decimals, and more near the threshold: 0.997 must not be shown as 1.00, which would hide the decision.
    """
    if not (threshold > 0 and math.isfinite(score / threshold)):
        return ""
    ratio = score / threshold
    for decimals in range(2, MAX_DIGITS + 1):
        text = f"{ratio:.{decimals}f}"
        if ratio == 1 or float(text) != 1:
            break
    return f"{text} × threshold"
