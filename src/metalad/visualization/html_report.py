"""The HTML report of one evaluation: the overall result, all images with their verdicts, metrics, plots, settings."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from metalad.results.report import Report, Verdict, threshold_line, verdict_line
from metalad.visualization.page import METRIC_LABELS, name_and_folder, outcome, times_threshold, write_html_page
from metalad.visualization.pictures import EmbeddedPicture, Pictures, embed
from metalad.visualization.plots import Plot, bar_plot, curve_plots, score_histogram


@dataclass(frozen=True)
class ImageRow:
    """One row of the image table."""

    verdict: Verdict
    name: str
    folder: str
    outcome: str
    times_threshold: str
    pictures: Mapping[str, EmbeddedPicture | None]


def write_html_report(path: Path, report: Report, pictures: Callable[[int], Pictures]) -> None:
    """Write the report as one self-contained file.

    `pictures(i)` returns the pictures of the image of `report.verdicts[i]`. It is called for one image at a time, in
    the order of the page: wrong verdicts first, then by decreasing score.

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


def default_order(verdicts: tuple[Verdict, ...]) -> list[int]:
    """Return the indices of the verdicts: wrong verdicts first, then by decreasing score. Ties keep their order."""
    return sorted(range(len(verdicts)), key=lambda index: (verdicts[index].correct, -verdicts[index].score))


def _rows(report: Report, pictures: Callable[[int], Pictures]) -> Iterator[ImageRow]:
    for index in default_order(report.verdicts):
        verdict = report.verdicts[index]
        name, folder = name_and_folder(verdict.path)
        yield ImageRow(
            verdict=verdict,
            name=name,
            folder=folder,
            outcome=outcome(verdict),
            times_threshold=times_threshold(verdict.score, report.chosen.threshold),
            pictures=_embedded(pictures(index)),
        )


def _embedded(pictures: Pictures) -> dict[str, EmbeddedPicture | None]:
    return {
        "Input": embed(pictures.image),
        "Reconstruction": embed(pictures.reconstruction),
        "Anomaly map": embed(pictures.anomaly_map),
        "Ground truth": embed(pictures.ground_truth),
    }


def _plots(report: Report) -> list[Plot]:
    good = [verdict.score for verdict in report.verdicts if not verdict.abnormal_truth]
    anomalous = [verdict.score for verdict in report.verdicts if verdict.abnormal_truth]
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
