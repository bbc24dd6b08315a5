"""A report as text for a terminal."""

from collections.abc import Mapping, Sequence

from metalad.results.report import (
    METRIC_NAMES,
    CorruptionRow,
    DefectRow,
    Metrics,
    Report,
    SizeRow,
    threshold_line,
    verdict_line,
)
from metalad.runtime.errors import printable
from metalad.visualization.plots import percent


def report_table(report: Report) -> str:
    """Return the summary for a terminal, ASCII if the names are: result, scorings, a row for each defect and so on."""
    head = [*_caution(report), _title(report), verdict_line(report), threshold_line(report)]
    blocks = [
        "\n".join([*head, *_separation(report), *_skipped_line(report)]),
        _scorings_table(report),
    ]
    if report.chosen.per_defect:
        blocks.append(_groups_table("defect", {row.defect: row for row in report.chosen.per_defect}))
    if report.chosen.per_size:
        blocks.append(_groups_table("size of defect", {row.size: row for row in report.chosen.per_size}))
    if report.chosen.per_corruption:
        blocks.append(_corruptions_table(report.chosen.per_corruption))
    blocks.extend(f"note: {printable(note)}" for note in report.notes)
    return "\n\n".join(blocks) + "\n"


def _title(report: Report) -> str:
    height, width = report.resolution
    return printable(f"{report.category}: {report.method}, {height} x {width} px, run {report.run}")


def _caution(report: Report) -> list[str]:
    return [str(report.caution)] if report.caution else []


def _separation(report: Report) -> list[str]:
    return [report.chosen.separation.text()] if report.chosen.separation else []


def _skipped_line(report: Report) -> list[str]:
    return [f"{len(report.skipped)} skipped as unreadable"] if report.skipped else []


def _scorings_table(report: Report) -> str:
    header = ["metric, %"]
    columns: list[Metrics] = []
    for scoring in report.scorings:
        header += [f"{scoring.name} (model)", f"{scoring.name} (original)"]
        columns += [scoring.metrics_model, scoring.metrics_original]
    rows = [[name, *(percent(getattr(column, name), "-") for column in columns)] for name in METRIC_NAMES]
    return aligned([header, *rows])


def _groups_table(kind: str, groups: Mapping[str, DefectRow] | Mapping[str, SizeRow]) -> str:
    shown = ("pixel_auroc_fpr30", "pixel_auroc", "pixel_aupro", "pixel_ap", "image_auroc")
    rows = [
        [printable(group), f"{row.found}/{row.images}"] + [percent(getattr(row.metrics, name), "-") for name in shown]
        for group, row in groups.items()
    ]
    return aligned([[kind, "found", *shown], *rows])


def _corruptions_table(corruptions: Sequence[CorruptionRow]) -> str:
    rows = [
        [
            row.corruption,
            percent(row.image_auroc, "-"),
            percent(row.image_auroc_loss, "-"),
            percent(row.false_alarm_rate),
            percent(row.false_alarm_rate_before),
        ]
        for row in corruptions
    ]
    return aligned([["good images with", "image_auroc", "loss", "false alarms", "before"], *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )
