"""The HTML report of one evaluation: the overall result, all images with their verdicts, metrics, plots, settings."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from metalad.results.pages.page import METRIC_LABELS, name_and_folder, outcome, times_threshold, write_html_page
from metalad.results.report import EvaluatedImage, Report, threshold_line, verdict_line
from metalad.visualization.pictures import EmbeddedPicture
from metalad.visualization.plots import Plot, bar_plot, curve_plots, score_histogram


@dataclass(frozen=True)
class ImageRow:
    """One row of the image table."""

    verdict: EvaluatedImage
    name: str
    folder: str
    outcome: str
    times_threshold: str
    pictures: Mapping[str, EmbeddedPicture | None]


def write_html_report(
    path: Path, report: Report, pictures: Callable[[int], Mapping[str, EmbeddedPicture | None]]
) -> None:
    """Write the report as one self-contained file.

    `pictures(i)` returns the embedded pictures of `report.images[i]` by their labels. It is called for one image at a
    time, in the order of the page: wrong decisions first, then by decreasing score.

    Raises:
        RunError: the file cannot be written.
    """
    values = {
        "title": f"{report.category}: {verdict_line(report)}",
        "report": report,
        "scoring": report.chosen,
        "verdict_line": verdict_line(report),
        "threshold_line": threshold_line(report),
        "metric_labels": METRIC_LABELS,
        "rows": _rows(report, pictures),
        "plots": _plots(report),
        "corruption_plots": list(_corruption_plots(report)),
        "settings": json.dumps(report.to_json()["settings"], indent=2, ensure_ascii=False),
    }
    write_html_page(path, "report.html", values)


def default_order(verdicts: tuple[EvaluatedImage, ...]) -> list[int]:
    """Return the indices of the verdicts: wrong verdicts first, then by decreasing score. Ties keep their order."""
    return sorted(range(len(verdicts)), key=lambda index: (verdicts[index].correct, -verdicts[index].score))


def _rows(report: Report, pictures: Callable[[int], Mapping[str, EmbeddedPicture | None]]) -> Iterator[ImageRow]:
    for index in default_order(report.images):
        verdict = report.images[index]
        name, folder = name_and_folder(verdict.path)
        yield ImageRow(
            verdict=verdict,
            name=name,
            folder=folder,
            outcome=outcome(verdict),
            times_threshold=times_threshold(verdict.score, report.chosen.threshold),
            pictures=pictures(index),
        )


def _plots(report: Report) -> list[Plot]:
    good = [verdict.score for verdict in report.images if not verdict.label]
    anomalous = [verdict.score for verdict in report.images if verdict.label]
    curves = ((scoring.name, curve) for scoring in report.scorings for curve in scoring.curves)
    histogram = score_histogram(good, anomalous, report.chosen.threshold)
    return [Plot(f"Image scores, {report.chosen.name}", Markup(histogram)), *curve_plots(curves)]


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
