"""The HTML page that compares several runs: images, metrics, curves and differing settings, side by side."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metalad.results.comparison import Choice, Comparison
from metalad.results.pages.page import METRIC_LABELS, name_and_folder, outcome, times_threshold, write_html_page
from metalad.results.report import EvaluatedImage, Report
from metalad.results.seeds import seed_table
from metalad.visualization.pictures import EmbeddedPicture
from metalad.visualization.plots import Plot, curve_plots

SHORT_LABELS = {
    "pixel_auroc_fpr30": "AUROC ≤ 30 %",
    "pixel_auroc": "AUROC",
    "pixel_aupro": "AUPRO",
    "pixel_ap": "AP",
    "pixel_f1max": "F1, maximum",
    "image_auroc": "AUROC",
    "image_ap": "AP",
    "image_f1max": "F1, maximum",
}
MAX_SETTING_LENGTH = 60
"""Characters of a setting's value that are shown."""


@dataclass(frozen=True)
class ComparedPictures:
    """The pictures of one image: the image, its ground truth, and the overlay of each run's map."""

    image: EmbeddedPicture | None
    truth: EmbeddedPicture | None
    overlays: tuple[EmbeddedPicture | None, ...]


@dataclass(frozen=True)
class RunResult:
    """The result of one run for one image."""

    verdict: EvaluatedImage
    times_threshold: str
    outcome: str
    overlay: EmbeddedPicture | None


@dataclass(frozen=True)
class ComparisonRow:
    """One row of the image table: one image with the results of all runs."""

    name: str
    folder: str
    verdict: EvaluatedImage
    reason: str
    pictures: ComparedPictures | None
    results: tuple[RunResult, ...]


@dataclass(frozen=True)
class Summary:
    """One row of the run table; `best` contains the columns in which no other run is better."""

    name: str
    report: Report
    best: frozenset[str]


def write_html_comparison(path: Path, comparison: Comparison, pictures: Mapping[int, ComparedPictures]) -> None:
    """Write the comparison as one self-contained file.

    Args:
        path: the file.
        comparison: the compared runs.
        pictures: the pictures of each selected image, by the index of its verdict; may be empty.

    Raises:
        RunError: the file cannot be written.
    """
    values = {
        "title": f"{comparison.category}: {' · '.join(comparison.names)}",
        "comparison": comparison,
        "count": len(comparison.reports[0].images),
        "headline": _headline(comparison),
        "summaries": _summaries(comparison),
        "seed_table": seed_table(comparison.over_seeds) if comparison.over_seeds else [],
        "rows": [_row(comparison, choice, pictures.get(choice.index)) for choice in comparison.choices],
        "blocks": list(comparison.blocks()),
        "same_size": len({report.resolution for report in comparison.reports}) == 1,
        "metric_labels": METRIC_LABELS,
        "short_labels": SHORT_LABELS,
        "plots": list(_plots(comparison)),
        "settings": differing_settings(comparison),
        "notes": _notes(comparison, bool(pictures)),
    }
    write_html_page(path, "comparison.html", values)


def differing_settings(comparison: Comparison) -> dict[str, list[str]]:
    """Return the settings that differ between the runs, by dotted name, with one text per run."""
    flat = [dict(_flatten("", report.to_json()["settings"])) for report in comparison.reports]
    names = dict.fromkeys(name for each in flat for name in each)
    table = {name: [each.get(name, "–") for each in flat] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, nested in value.items():
            yield from _flatten(f"{prefix}.{name}" if prefix else name, nested)
    else:
        rounded = float(f"{value:.6g}") if isinstance(value, float) else value
        text = rounded if isinstance(rounded, str) else json.dumps(rounded, ensure_ascii=False)
        yield prefix, text if len(text) <= MAX_SETTING_LENGTH else f"{text[: MAX_SETTING_LENGTH - 1]}…"


def _headline(comparison: Comparison) -> str:
    count, disagreements = len(comparison.reports[0].images), comparison.disagreements
    if disagreements == 0:
        return f"The {len(comparison.names)} runs agree on all {count} images"
    return f"The {len(comparison.names)} runs disagree on {disagreements} of {count} images"


def _summaries(comparison: Comparison) -> list[Summary]:
    counts = [report.chosen.confusion for report in comparison.reports]
    lower_is_better = {
        "found": [each.fn for each in counts],
        "rejected": [each.fp for each in counts],
        "wrong": [report.wrong for report in comparison.reports],
    }
    return [
        Summary(name, report, frozenset(key for key, each in lower_is_better.items() if _is_marked_best(each, index)))
        for index, (name, report) in enumerate(zip(comparison.names, comparison.reports, strict=True))
    ]


def _is_marked_best(counts: list[int], index: int) -> bool:
    """Whether no run has a lower count. False if all counts are equal: then no run is marked."""
    return len(set(counts)) > 1 and counts[index] == min(counts)


def _row(comparison: Comparison, choice: Choice, pictures: ComparedPictures | None) -> ComparisonRow:
    verdicts = [each[choice.index] for each in comparison.images_by_run]
    overlays = pictures.overlays if pictures else (None,) * len(verdicts)
    results = tuple(
        RunResult(verdict, times_threshold(verdict.score, report.chosen.threshold), outcome(verdict), overlay)
        for verdict, report, overlay in zip(verdicts, comparison.reports, overlays, strict=True)
    )
    return ComparisonRow(*name_and_folder(verdicts[0].path), verdicts[0], choice.reason, pictures, results)


def _plots(comparison: Comparison) -> Iterator[Plot]:
    for name in (scoring.name for scoring in comparison.reports[0].scorings):
        curves = (
            (run, curve)
            for run, report in zip(comparison.names, comparison.reports, strict=True)
            for scoring in report.scorings
            if scoring.name == name
            for curve in scoring.curves
        )
        yield from curve_plots(curves, name)


def _notes(comparison: Comparison, has_pictures: bool) -> list[str]:
    notes = []
    if comparison.choices and not has_pictures:
        notes.append("No pictures: the test images are no longer in the evaluated folder; give their folder as --data.")
    if len({str(report.settings.get("training_hash")) for report in comparison.reports}) > 1:
        notes.append("The runs were trained on different images.")
    for name, report in zip(comparison.names, comparison.reports, strict=True):
        notes += [f"{name}: {note}" for note in report.notes]
        notes += [f"{name}: {len(report.skipped)} images could not be read and were skipped."] if report.skipped else []
    return notes
