"""The page that shows several runs side by side: where they disagree, then their numbers, curves and settings."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metalad.results.comparison import Choice, Comparison
from metalad.results.report import Report, Verdict
from metalad.visualization.page import METRIC_LABELS, name_and_folder, outcome, times_threshold, write_html_page
from metalad.visualization.pictures import Shown
from metalad.visualization.plots import Plot, curve_plots

SHORT_LABELS = {
    "pixel_auroc_fpr30": "AUROC ≤ 30 %",
    "pixel_auroc": "AUROC",
    "pixel_aupro": "AUPRO",
    "pixel_ap": "AP",
    "pixel_f1max": "F1, best",
    "image_auroc": "AUROC",
    "image_ap": "AP",
    "image_f1max": "F1, best",
}
LONG_SETTING = 60


@dataclass(frozen=True)
class Seen:
    """The pictures of one image: itself, its ground truth, and each run's map over it."""

    image: Shown | None
    truth: Shown | None
    overlays: tuple[Shown | None, ...]


@dataclass(frozen=True)
class View:
    """One image through one run."""

    verdict: Verdict
    times_threshold: str
    outcome: str
    overlay: Shown | None


@dataclass(frozen=True)
class Row:
    """One image's line in the page."""

    name: str
    folder: str
    verdict: Verdict
    reason: str
    seen: Seen | None
    views: tuple[View, ...]


@dataclass(frozen=True)
class Summary:
    """One run's line at the top of the page; `best` are the names of the columns in which none is better."""

    name: str
    report: Report
    best: frozenset[str]


def write_html_comparison(path: Path, comparison: Comparison, seen: Mapping[int, Seen]) -> None:
    """Write the comparison as one file that needs no other.

    Args:
        path: the file.
        comparison: what was found.
        seen: the pictures of each chosen image, by its place among the verdicts; may be empty.

    Raises:
        RunError: the file cannot be written.
    """
    values = {
        "title": f"{comparison.category}: {' · '.join(comparison.names)}",
        "comparison": comparison,
        "count": len(comparison.reports[0].verdicts),
        "headline": _headline(comparison),
        "summaries": _summaries(comparison),
        "rows": [_row(comparison, choice, seen.get(choice.index)) for choice in comparison.choices],
        "blocks": list(comparison.blocks()),
        "same_size": len({report.resolution for report in comparison.reports}) == 1,
        "metric_labels": METRIC_LABELS,
        "short_labels": SHORT_LABELS,
        "plots": list(_plots(comparison)),
        "settings": differing_settings(comparison),
        "notes": _notes(comparison, bool(seen)),
    }
    write_html_page(path, "comparison.html", values)


def differing_settings(comparison: Comparison) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, by dotted name, a text for each run."""
    flat = [dict(_flat("", report.to_json()["settings"])) for report in comparison.reports]
    names = dict.fromkeys(name for each in flat for name in each)
    table = {name: [each.get(name, "–") for each in flat] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def _flat(above: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _flat(f"{above}.{name}" if above else name, below)
    else:
        rounded = float(f"{value:.6g}") if isinstance(value, float) else value
        text = rounded if isinstance(rounded, str) else json.dumps(rounded, ensure_ascii=False)
        yield above, text if len(text) <= LONG_SETTING else f"{text[: LONG_SETTING - 1]}…"


def _headline(comparison: Comparison) -> str:
    count, apart = len(comparison.reports[0].verdicts), comparison.disagreements
    if apart == 0:
        return f"The {len(comparison.names)} runs agree on all {count} images"
    return f"The {len(comparison.names)} runs disagree on {apart} of {count} images"


def _summaries(comparison: Comparison) -> list[Summary]:
    counts = [report.chosen.confusion for report in comparison.reports]
    fewest = {
        "found": [each.fn for each in counts],
        "rejected": [each.fp for each in counts],
        "wrong": [report.wrong for report in comparison.reports],
    }
    return [
        Summary(name, report, frozenset(column for column, each in fewest.items() if _alone_best(each, index)))
        for index, (name, report) in enumerate(zip(comparison.names, comparison.reports, strict=True))
    ]


def _alone_best(counts: list[int], index: int) -> bool:
    """Whether none is lower; never where all are equal, as nothing stands out then."""
    return len(set(counts)) > 1 and counts[index] == min(counts)


def _row(comparison: Comparison, choice: Choice, seen: Seen | None) -> Row:
    verdicts = [each[choice.index] for each in comparison.verdicts]
    overlays = seen.overlays if seen else (None,) * len(verdicts)
    views = tuple(
        View(verdict, times_threshold(verdict.score, report.chosen.threshold), outcome(verdict), overlay)
        for verdict, report, overlay in zip(verdicts, comparison.reports, overlays, strict=True)
    )
    return Row(*name_and_folder(verdicts[0].path), verdicts[0], choice.reason, seen, views)


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


def _notes(comparison: Comparison, pictures: bool) -> list[str]:
    notes = []
    if comparison.choices and not pictures:
        notes.append("No pictures: the test images are not where they were evaluated; give their folder as --data.")
    if len({str(report.settings.get("training_hash")) for report in comparison.reports}) > 1:
        notes.append("The runs were not all trained on the same images.")
    for name, report in zip(comparison.names, comparison.reports, strict=True):
        notes += [f"{name}: {note}" for note in report.notes]
        notes += [f"{name}: {len(report.skipped)} images were skipped as unreadable."] if report.skipped else []
    return notes
