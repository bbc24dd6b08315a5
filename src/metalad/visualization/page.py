"""Write one self-contained HTML page from a template of this package, piece by piece.

A page reaches for nothing outside itself, and its content security policy makes the browser hold it to that.
"""

import functools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import jinja2

from metalad.results.report import Verdict, percent
from metalad.runtime.files import replacing

METRIC_LABELS = {
    "pixel_auroc_fpr30": "Pixel AUROC, false alarms ≤ 30 %",
    "pixel_auroc": "Pixel AUROC",
    "pixel_aupro": "Pixel AUPRO, false alarms ≤ 30 %",
    "pixel_ap": "Pixel average precision",
    "pixel_f1max": "Pixel F1, best",
    "image_auroc": "Image AUROC",
    "image_ap": "Image average precision",
    "image_f1max": "Image F1, best",
}


def write_html_page(path: Path, template: str, values: Mapping[str, object]) -> None:
    """Render `template` (a file in templates/) to `path`, atomically; all values are escaped unless `Markup`.

    The page is written while it is rendered, so values given as generators are never held in memory at once.

    Raises:
        RunError: the file cannot be written.
    """
    stream = _environment().get_template(template).stream(values)
    # A file name that is not UTF-8 holds lone surrogates: show them as \\udc.. rather than fail.
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
    """A score with four significant digits, trailing zeros kept so that a column of them lines up."""
    return f"{value:#.4g}".removesuffix(".")


def outcome(verdict: Verdict) -> str:
    """Whether a verdict is right, and if not, how it is wrong."""
    if verdict.correct:
        return "correct"
    return "false alarm" if verdict.abnormal else "missed defect"


def name_and_folder(path: str) -> tuple[str, str]:
    """A path's last part, and what is before it with its slash, to be shown apart."""
    place = PurePosixPath(path)
    return place.name or path, "" if str(place.parent) == "." else f"{place.parent}/"


def times_threshold(score: float, threshold: float) -> str:
    """A score in units of its threshold; nothing where that is no unit."""
    return f"{score / threshold:.2f} × threshold" if threshold > 0 else ""
