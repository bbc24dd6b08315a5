"""What a cell gives to its suite's picture: an image of each kind of defect, and what the model makes of it."""

from collections.abc import Sequence
from pathlib import Path

from metalad.data import load_images, read_category
from metalad.data.images import write_image
from metalad.pipelines.benchmark.figure import HEADINGS, WIDTHS
from metalad.pipelines.rendering import render
from metalad.results.report import Report, Verdict
from metalad.runtime.errors import printable
from metalad.storage.model_file import Model
from metalad.visualization.maps import verdict_heat
from metalad.visualization.sheet import GREEN, INK, QUIET, RED, Caption, SheetCell, sheet

GAP = 8


def typical(verdicts: Sequence[Verdict]) -> list[int]:
    """The places of the images to show: of each kind of defect, by name, the one of middle score.

    Of an even number the lower of the two in the middle; of equal scores the first in the order of the paths.
    """
    kinds: dict[str, list[int]] = {}
    for index, verdict in enumerate(verdicts):
        if verdict.abnormal_truth:
            kinds.setdefault(verdict.defect, []).append(index)

    def rank(index: int) -> tuple[float, str]:
        return verdicts[index].score, verdicts[index].path

    return [sorted(places, key=rank)[(len(places) - 1) // 2] for _, places in sorted(kinds.items())]


def draw_examples(path: Path, model: Model, data: Path, report: Report) -> None:
    """Draw a row for each of the `typical` images: see `figure.HEADINGS` for the columns.

    Args:
        path: the picture's file.
        model: what is to be shown.
        data: the category that it was evaluated on.
        report: of that evaluation.

    Raises:
        ImageError: an image cannot be read any more. RunError: the picture cannot be written.
    """
    category = read_category(data, seed=model.header.seed)
    samples = {category.relative(sample): sample for sample in category.test}
    thresholds = {scoring.name: scoring.threshold for scoring in report.scorings}
    rows: list[list[SheetCell]] = []
    for index in typical(report.verdicts):
        verdict = report.verdicts[index]
        sample = samples[verdict.path]
        pixels = load_images([sample], model.detector.config.image_size, strict=True).pixels[0]
        raw, calibrated = (render(model.detector, sample, pixels, scoring) for scoring in ("raw", "calibrated"))
        chosen = raw if report.chosen.name == "raw" else calibrated
        rows.append([
            _label(report, verdict),
            raw.image,
            raw.white_truth,
            raw.reconstruction,
            verdict_heat(raw.anomaly_map, thresholds["raw"]),
            verdict_heat(calibrated.anomaly_map, thresholds["calibrated"]),
            chosen.overlay(report.chosen.threshold),
        ])  # fmt: skip
        assert len(rows[-1]) == len(HEADINGS)
    write_image(path, sheet(rows, WIDTHS, GAP))


def _label(report: Report, verdict: Verdict) -> Caption:
    place = Path(verdict.path)
    found = ("found", GREEN) if verdict.abnormal else ("missed", RED)
    return Caption((
        (printable(report.category), 16, INK),
        (printable(verdict.defect), 13, INK),
        (printable(place.name), 13, QUIET),
        (f"{verdict.score / report.chosen.threshold:.2f} x threshold", 13, QUIET),
        (found[0], 13, found[1]),
    ))  # fmt: skip
