"""A cell's strip of example images for the picture of its suite: one test image per defect type, with its maps."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.figure import HEADINGS, WIDTHS, strip_path
from metalad.data import read_category, read_truth
from metalad.data.images import read_image, write_image
from metalad.data.reading import Reading
from metalad.detectors.base import SCORINGS
from metalad.inference.stream import Predictor, default_batch_size, infer_one
from metalad.pipelines.benchmark.execution import run_job
from metalad.pipelines.benchmark.job import Job
from metalad.pipelines.rendering import render
from metalad.results.report import EvaluatedImage, Report
from metalad.runtime.errors import printable
from metalad.storage.model_file import StoredModel
from metalad.visualization.maps import verdict_heat
from metalad.visualization.sheet import GREEN, INK, QUIET, RED, Caption, SheetCell, sheet

GAP = 8


def run_job_json(values: Mapping[str, Any], *, progress: bool = False) -> dict[str, Any]:
    """Run a job as `metalad.pipelines.benchmark.execution.run_job_json`, and draw its strip beside its work folder."""
    return run_job(Job.from_json(values), progress=progress, finish=_draw_strip).to_json()


def _draw_strip(job: Job, model: StoredModel, report: Report) -> None:
    work = Path(job.work)
    draw_examples(strip_path(work.parent, work.name), model, Path(job.data or ""), report)


def median_images(images: Sequence[EvaluatedImage]) -> list[int]:
    """Return the indices of the images to show: for each defect type, in order of name, the image of median score.

    For an even number of images, the lower of the two middle ones; equal scores are ordered by path.
    """
    kinds: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        if image.label:
            kinds.setdefault(image.defect, []).append(index)

    def rank(index: int) -> tuple[float, str]:
        return images[index].score, images[index].path

    return [sorted(indices, key=rank)[(len(indices) - 1) // 2] for _, indices in sorted(kinds.items())]


def draw_examples(path: Path, model: StoredModel, data: Path, report: Report) -> None:
    """Draw a row per image of `median_images`; `figure.HEADINGS` are the columns.

    Args:
        path: the file to write.
        model: the trained model.
        data: the category that the model was evaluated on.
        report: the report of that evaluation.

    Raises:
        ImageError: an image cannot be read. RunError: the file cannot be written.
    """
    category = read_category(data, seed=model.header.seed)
    samples = {category.relative(sample): sample for sample in category.test}
    thresholds = {scoring.name: scoring.threshold for scoring in report.scorings}
    predictor = Predictor(model.engine, SCORINGS, default_batch_size(model.engine.device_type))
    rows: list[list[SheetCell]] = []
    for index in median_images(report.images):
        image = report.images[index]
        sample = samples[image.path]
        inferred = infer_one(predictor, sample, partial(read_image, sample.path, Reading(model.header.white_level)))
        truth = read_truth(sample, inferred.decoded.size)
        raw, calibrated = render(inferred, truth, "raw"), render(inferred, truth, "calibrated")
        chosen = raw if report.chosen.name == "raw" else calibrated
        rows.append([
            _label(report, image),
            raw.image,
            raw.white_truth,
            raw.reconstruction,
            verdict_heat(raw.anomaly_map, thresholds["raw"]),
            verdict_heat(calibrated.anomaly_map, thresholds["calibrated"]),
            chosen.overlay(report.chosen.threshold),
        ])  # fmt: skip
        assert len(rows[-1]) == len(HEADINGS)
    write_image(path, sheet(rows, WIDTHS, GAP))


def _label(report: Report, image: EvaluatedImage) -> Caption:
    result = ("found", GREEN) if image.is_anomalous else ("missed", RED)
    return Caption((
        (printable(report.category), 16, INK),
        (printable(image.defect), 13, INK),
        (printable(Path(image.path).name), 13, QUIET),
        (f"{image.score / report.chosen.threshold:.2f} x threshold", 13, QUIET),
        (result[0], 13, result[1]),
    ))  # fmt: skip
