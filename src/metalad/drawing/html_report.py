"""The page an inspection engineer opens: the verdict, every image, then the numbers behind them."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from markupsafe import Markup

from metalad.drawing.page import write_html_page
from metalad.drawing.pictures import Picture, Pictures, data_uri, thumbnail
from metalad.drawing.plots import curve_plot, score_histogram
from metalad.report import Curve, Report, Verdict, threshold_line, verdict_line

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
class Shown:
    """One picture in the page: its address, and its size in pixels so that the layout never jumps."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Row:
    """One image's line in the page."""

    verdict: Verdict
    name: str
    folder: str
    outcome: str
    times_threshold: str
    pictures: Mapping[str, Shown | None]


@dataclass(frozen=True)
class Plot:
    """One plot in the page."""

    title: str
    svg: Markup


def write_html_report(path: Path, report: Report, pictures: Callable[[int], Pictures]) -> None:
    """Write the report as one file that needs no other; `pictures(i)` draws what `report.verdicts[i]` judged.

    It is asked for one image at a time, in the page's order: wrong verdicts first, then by falling score.

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
        "settings": json.dumps(report.to_json()["settings"], indent=2, ensure_ascii=False),
    }
    write_html_page(path, "report.html", values)


def default_order(verdicts: tuple[Verdict, ...]) -> list[int]:
    """The positions of the verdicts, wrong ones first, then by falling score; ties keep their order."""
    return sorted(range(len(verdicts)), key=lambda index: (verdicts[index].correct, -verdicts[index].score))


def _rows(report: Report, pictures: Callable[[int], Pictures]) -> Iterator[Row]:
    for index in default_order(report.verdicts):
        verdict = report.verdicts[index]
        place = PurePosixPath(verdict.path)
        yield Row(
            verdict=verdict,
            name=place.name or verdict.path,
            folder="" if str(place.parent) == "." else f"{place.parent}/",
            outcome=_outcome(verdict),
            times_threshold=_times_threshold(verdict.score, report.chosen.threshold),
            pictures=_shown(pictures(index)),
        )


def _outcome(verdict: Verdict) -> str:
    if verdict.correct:
        return "correct"
    return "false alarm" if verdict.abnormal else "missed defect"


def _times_threshold(score: float, threshold: float) -> str:
    return f"{score / threshold:.2f} × threshold" if threshold > 0 else ""


def _shown(pictures: Pictures) -> dict[str, Shown | None]:
    return {
        "Input": _embed(pictures.image),
        "Reconstruction": _embed(pictures.reconstruction),
        "Anomaly map": _embed(pictures.anomaly_map),
        "Ground truth": _embed(pictures.ground_truth),
    }


def _embed(picture: Picture | None) -> Shown | None:
    if picture is None:
        return None
    small = thumbnail(picture)
    return Shown(data_uri(small), small.width, small.height)


def _plots(report: Report) -> list[Plot]:
    good = [verdict.score for verdict in report.verdicts if not verdict.abnormal_truth]
    abnormal = [verdict.score for verdict in report.verdicts if verdict.abnormal_truth]
    histogram = score_histogram(good, abnormal, report.chosen.threshold)
    return [Plot(f"Image scores, {report.chosen.name}", Markup(histogram)), *_curve_plots(report)]


def _curve_plots(report: Report) -> Iterator[Plot]:
    """One plot per curve's name, with the scorings' curves together in it."""
    together: dict[str, list[Curve]] = {}
    for scoring in report.scorings:
        for curve in scoring.curves:
            named = Curve(scoring.name, curve.x, curve.y, curve.area)
            together.setdefault(curve.name, []).append(named)
    for name, curves in together.items():
        kind = CURVE_KINDS.get(name, CurveKind(name, "x", "y"))
        svg = curve_plot(curves, kind.title, kind.xlabel, kind.ylabel, kind.limit)
        yield Plot(kind.title, Markup(svg))
