"""Render a self-contained HTML page from a template of this package, as a stream.

A page loads no external resources. Its content security policy makes the browser enforce this.
"""

import functools
from collections.abc import Mapping
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


def write_html_page(path: Path, template: str, values: Mapping[str, object]) -> None:
    """Render `template` (a file in templates/) to `path`, atomically; all values except `Markup` are escaped.

    The page is written while it is rendered, so the items of a generator are not all held in memory at the same time.

    Raises:
        RunError: the file cannot be written.
    """
    stream = _environment().get_template(template).stream(values)
    # A file name that is not valid UTF-8 contains lone surrogates: write them as \\udc.. instead of failing.
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as page,
    ):
        page.writelines(stream)


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


def digits(value: float) -> str:
    """Format a score with four significant digits. Trailing zeros are kept, so that a column of scores is aligned."""
    return f"{value:#.4g}".removesuffix(".")


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
    """Format a score as a multiple of its threshold; an empty string if the threshold is not above 0."""
    return f"{score / threshold:.2f} × threshold" if threshold > 0 else ""
