"""The HTML report of one evaluation: the result, scores and threshold, all images, metrics, plots, settings."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from metalad.results.pages.page import METRIC_LABELS, digits, name_and_folder, outcome, times_threshold, write_html_page
from metalad.results.pages.score_plot import ScorePlot, score_plot
from metalad.results.report import EvaluatedImage, Report, threshold_line, verdict_line
from metalad.visualization.maps import color_stops
from metalad.visualization.picture_folder import PictureFolder
from metalad.visualization.pictures import EmbeddedPicture
from metalad.visualization.plots import Plot, bar_plot, curve_plots

PIXEL_METRICS = tuple(name for name in METRIC_LABELS if name.startswith("pixel_"))
IMAGE_METRICS = tuple(name for name in METRIC_LABELS if name.startswith("image_"))
TILES = ("pixel_auroc_fpr30", "pixel_aupro", "pixel_ap", "image_auroc", "image_ap")
GROUP_LABELS = {
    "pixel_auroc_fpr30": "pixel AUROC ≤ 30 %",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupro": "AUPRO",
    "pixel_ap": "pixel AP",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
}
EMBEDDED_ROWS = 200
"""Images whose thumbnails are in the page itself: about 10 MB."""


@dataclass(frozen=True)
class ImageRow:
    """One row of the image table."""

    verdict: EvaluatedImage
    name: str
    folder: str
    outcome: str
    score: str
    times_threshold: str
    peak: str
    pictures: Mapping[str, EmbeddedPicture | None]


def write_html_report(
    path: Path,
    report: Report,
    pictures: Callable[[int], Mapping[str, EmbeddedPicture | None]],
    folder: PictureFolder | None = None,
) -> None:
    """Write the report as one file, with thumbnails inside, and publish the folder of its other pictures.

    `pictures(i)` returns the embedded pictures of `report.images[i]` by their labels. It is called for one image at a
    time, in the order of the page: wrong decisions first, then by decreasing score. With a folder, the thumbnails of
    all but the first `EMBEDDED_ROWS` images are moved there, which keeps the page small.

    Raises:
        RunError: the file cannot be written.
    """
    plot = score_plot(report)
    metrics = [name for group in (PIXEL_METRICS, IMAGE_METRICS) if _any_defined(report, group) for name in group]
    values = {
        "title": f"{report.category}: {verdict_line(report)}",
        "report": report,
        "scoring": report.chosen,
        "verdict_line": verdict_line(report),
        "threshold_line": threshold_line(report),
        "notes": report.notes,
        "score_plot": plot,
        "score_data": _score_data(report, plot),
        "defects": sorted({image.defect for image in report.images}),
        "color_stops": color_stops(),
        "has_masks": _any_defined(report, PIXEL_METRICS),
        "metric_labels": {name: METRIC_LABELS[name] for name in metrics},
        "tile_labels": {name: METRIC_LABELS[name] for name in TILES if name in metrics},
        "group_labels": {name: label for name, label in GROUP_LABELS.items() if name in metrics},
        "nothing_lost": nothing_lost(report),
        "rows": _rows(report, pictures, folder),
        "plots": _plots(report),
        "corruption_plots": list(_corruption_plots(report)),
        "settings": json.dumps(report.to_json()["settings"], indent=2, ensure_ascii=False),
    }
    write_html_page(path, "report.html", values, folder.publish if folder else None)


def default_order(verdicts: tuple[EvaluatedImage, ...]) -> list[int]:
    """Return the indices of the verdicts: wrong verdicts first, then by decreasing score. Ties keep their order."""
    return sorted(range(len(verdicts)), key=lambda index: (verdicts[index].correct, -verdicts[index].score))


def _rows(
    report: Report,
    pictures: Callable[[int], Mapping[str, EmbeddedPicture | None]],
    files: PictureFolder | None,
) -> Iterator[ImageRow]:
    for position, index in enumerate(default_order(report.images)):
        verdict = report.images[index]
        name, folder = name_and_folder(verdict.path)
        embedded = pictures(index)
        if files and position >= EMBEDDED_ROWS:
            embedded = {label: each and files.move_thumbnail(index, label, each) for label, each in embedded.items()}
        yield ImageRow(
            verdict=verdict,
            name=name,
            folder=folder,
            outcome=outcome(verdict),
            score=digits(verdict.score, report.chosen.threshold),
            times_threshold=times_threshold(verdict.score, report.chosen.threshold),
            peak=_peak(embedded),
            pictures=embedded,
        )


def _peak(pictures: Mapping[str, EmbeddedPicture | None]) -> str:
    centers = (picture.center for picture in pictures.values() if picture and picture.center)
    return " ".join(f"{value:.5f}" for value in next(centers, ()))


def _score_data(report: Report, plot: ScorePlot) -> dict[str, object]:
    """Return what the page needs to move the threshold: the axis, the threshold, and the rate of each threshold."""
    scoring = report.chosen
    return {
        "low": plot.low,
        "high": plot.high,
        "logarithmic": plot.logarithmic,
        "own": scoring.threshold if math.isfinite(scoring.threshold) else None,
        "ownRate": scoring.false_alarm_rate,
        "rates": scoring.rate_thresholds,
    }


def _any_defined(report: Report, names: Iterable[str]) -> bool:
    metrics = [each for scoring in report.scorings for each in (scoring.metrics_model, scoring.metrics_original)]
    return any(getattr(each, name) is not None for name in names for each in metrics)


def nothing_lost(report: Report) -> str:
    """Return one line if no corruption lowers image AUROC by 0.01 points or adds a false alarm, else an empty text."""
    rows = [row for scoring in report.scorings for row in scoring.per_corruption]
    for row in rows:
        if row.false_alarm_rate > row.false_alarm_rate_before or round(row.image_auroc_loss or 0, 4) > 0:
            return ""
    count = len(report.chosen.per_corruption)
    return f"Nothing is lost under {count} corruptions: no lower image AUROC, no further false alarms" if rows else ""


def _plots(report: Report) -> list[Plot]:
    return list(curve_plots((scoring.name, curve) for scoring in report.scorings for curve in scoring.curves))


def _corruption_plots(report: Report) -> Iterator[Plot]:
    names = [row.corruption for row in report.chosen.per_corruption]
    for title, field, xlabel in (
        ("Image AUROC lost", "image_auroc_loss", "percentage points"),
        ("False alarms", "false_alarm_rate", "percent of good images"),
    ):
        bars: dict[str, list[float | None]] = {
            each.name: [getattr(row, field) for row in each.per_corruption] for each in report.scorings
        }
        if names and any(value is not None for values in bars.values() for value in values):
            yield Plot(title, Markup(bar_plot(names, bars, title, xlabel)))
