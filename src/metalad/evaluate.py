"""Measure a model on a category's test images: numbers at two resolutions, per defect, and a page to look at."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32
from tqdm import tqdm

from metalad.data import Category, Images, Sample, load_images, read_category, read_truth
from metalad.detector import SCORINGS, Detector, Scoring, to_batch
from metalad.device import choose_device
from metalad.drawing.html_report import write_html_report
from metalad.drawing.pictures import Pictures
from metalad.errors import DataError
from metalad.files import write_json
from metalad.images import resize_map, resize_mask
from metalad.methods import method_named
from metalad.metrics import PixelMetrics, UndefinedMetric, auroc, average_precision, f1_max, roc_curve
from metalad.model_file import Model, read_model
from metalad.painting import paint
from metalad.report import Confusion, Curve, DefectRow, Metrics, Report, Verdict
from metalad.report import Scoring as ScoringReport

GOOD = "good"
BATCH_SIZE = 16
CURVE_POINTS = 500


def evaluate(
    run: Path,
    data: Path,
    *,
    out: Path | None = None,
    scoring: Scoring | None = None,
    false_alarms: float | None = None,
    strict: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> Report:
    """Judge every test image of `data`, and write `report.json` and a self-contained `report.html`.

    Args:
        run: a run folder or a model file.
        data: a category with test images; its masks, where there are any, give the pixel metrics.
        out: where the reports go, `RUN/evaluation` by default.
        scoring: `calibrated` or `raw` to judge by, the model's own by default; the report shows both.
        false_alarms: wanted fraction of good images above the threshold, the model's own by default.
        strict: let the first unreadable image be an error instead of skipping it.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show a progress bar on the terminal.

    Raises:
        ModelFileError: no usable model. DataError: no test images, or a mask that does not fit its image.
        RunError: the reports cannot be written.
    """
    model = read_model(run, str(choose_device(device)))
    rates = {name: model.threshold(false_alarms, name) for name in SCORINGS}
    category = read_category(data, seed=model.header.seed)
    if not category.test:
        raise DataError(f"{data}: no test images there; evaluate needs a folder `test` with `good` and defect folders")
    images = load_images(category.test, model.detector.config.image_size, strict=strict, progress=progress)
    tally = _judge(model.detector, images, progress)
    chosen = model.scoring(scoring)
    report = Report(
        category=category.name,
        method=model.header.method,
        run=model.path.parent.resolve().name,
        resolution=model.detector.config.image_size,
        smoothing_sigma=model.detector.config.smoothing_sigma,
        scorings=tuple(
            _scoring(name, tally, images.samples, rates[name], false_alarms or model.header.false_alarms)
            for name in sorted(SCORINGS, key=lambda name: name != chosen)
        ),
        verdicts=_verdicts(category, images, tally, chosen, rates[chosen]),
        skipped=tuple((str(skipped.path), skipped.reason) for skipped in images.skipped),
        settings=dataclasses.asdict(model.header),
        notes=_notes(model, category.name, images.samples),
        data=str(category.root.resolve()),
    )
    folder = out or model.path.parent / "evaluation"
    write_json(folder / "report.json", report.to_json())
    write_html_report(folder / "report.html", report, _painter(model, images, chosen, rates[chosen]))
    return report


class Resolution(NamedTuple):
    """Pixel metrics of one group of images, at the model's resolution and at the images' own."""

    model: PixelMetrics
    original: PixelMetrics

    @classmethod
    def empty(cls) -> "Resolution":
        """Return accumulators without a pixel."""
        return cls(PixelMetrics(), PixelMetrics())

    def joined(self, other: "Resolution") -> "Resolution":
        """Return the metrics of both groups together."""
        both = Resolution.empty()
        for part in (self, other):
            both.model.merge(part.model)
            both.original.merge(part.original)
        return both


@dataclass(frozen=True)
class _Tally:
    """What was measured: an image score each, and pixel metrics a group, `good` and each defect."""

    scores: Mapping[Scoring, np.ndarray]
    pixels: Mapping[Scoring, Mapping[str, Resolution]]


def _judge(detector: Detector, images: Images, progress: bool) -> _Tally:
    scores: dict[Scoring, np.ndarray] = {scoring: np.zeros(len(images), np.float32) for scoring in SCORINGS}
    groups = {sample.defect for sample in images.samples} | {GOOD}
    pixels = {scoring: {group: Resolution.empty() for group in groups} for scoring in SCORINGS}
    with tqdm(total=len(images), desc="evaluate", unit="image", disable=not progress) as bar:
        for start in range(0, len(images), BATCH_SIZE):
            with torch.inference_mode():
                batch = to_batch(images.pixels[start : start + BATCH_SIZE], detector.device)
                evidence = detector.evidence(batch)
                judged = {scoring: detector.judge(evidence, scoring) for scoring in SCORINGS}
            for scoring, prediction in judged.items():
                scores[scoring][start : start + BATCH_SIZE] = prediction.score.numpy(force=True)
            for offset in range(len(batch)):
                mask = read_truth(images.samples[start + offset], images.sizes[start + offset])
                if mask is not None:
                    for scoring, prediction in judged.items():
                        group = pixels[scoring][images.samples[start + offset].defect]
                        _add(group, prediction.anomaly_map[offset].numpy(force=True), mask)
            bar.update(len(batch))
    return _Tally(scores, pixels)


def _add(group: Resolution, anomaly_map: Float32[np.ndarray, "h w"], mask: Bool[np.ndarray, "height width"]) -> None:
    group.model.add(anomaly_map, resize_mask(mask, anomaly_map.shape))
    group.original.add(resize_map(anomaly_map, mask.shape), mask)


def _scoring(name: Scoring, tally: _Tally, samples: Sequence[Sample], threshold: float, rate: float) -> ScoringReport:
    scores, pixels = tally.scores[name], tally.pixels[name]
    truth = np.array([sample.abnormal for sample in samples])
    defects = np.array([sample.defect for sample in samples])
    flagged = scores.astype(np.float64) > threshold
    rows, everything = [], pixels[GOOD]
    for defect in sorted(set(pixels) - {GOOD}):
        here = defects == defect
        kept = here | ~truth
        both = pixels[defect].joined(pixels[GOOD])
        everything = everything.joined(pixels[defect])
        rows.append(
            DefectRow(
                defect=defect,
                images=int(here.sum()),
                found=int((flagged & here).sum()),
                metrics=_metrics(scores[kept], truth[kept], both.model),
                metrics_original=_metrics(scores[kept], truth[kept], both.original),
            )
        )
    return ScoringReport(
        name=name,
        threshold=threshold,
        metrics_model=_metrics(scores, truth, everything.model),
        metrics_original=_metrics(scores, truth, everything.original),
        confusion=Confusion(
            tp=int((flagged & truth).sum()),
            fp=int((flagged & ~truth).sum()),
            tn=int((~flagged & ~truth).sum()),
            fn=int((~flagged & truth).sum()),
        ),
        per_defect=tuple(rows),
        curves=tuple(_curves(scores, truth, everything.model)),
        false_alarm_rate=rate,
    )


def _metrics(scores: np.ndarray, truth: np.ndarray, pixels: PixelMetrics) -> Metrics:
    return Metrics(
        pixel_auroc_fpr30=_defined(lambda: pixels.auroc_up_to(0.3)),
        pixel_auroc=_defined(pixels.auroc),
        pixel_aupro=_defined(lambda: pixels.aupro(0.3)),
        pixel_ap=_defined(pixels.average_precision),
        pixel_f1max=_defined(lambda: pixels.f1_max()[0]),
        image_auroc=_defined(lambda: auroc(scores, truth)),
        image_ap=_defined(lambda: average_precision(scores, truth)),
        image_f1max=_defined(lambda: f1_max(scores, truth)[0]),
    )


def _defined(metric: Callable[[], float]) -> float | None:
    try:
        return float(metric())
    except UndefinedMetric:
        return None


def _curves(scores: np.ndarray, truth: np.ndarray, pixels: PixelMetrics) -> Iterator[Curve]:
    try:
        image = roc_curve(scores, truth)
        yield Curve("image_roc", _points(image.fpr), _points(image.tpr), auroc(scores, truth))
        pixel = pixels.roc_curve()
        yield Curve("pixel_roc", _points(pixel.fpr), _points(pixel.tpr), pixels.auroc())
        overlap = pixels.pro_curve()
        yield Curve("pixel_pro", _points(overlap.fpr), _points(overlap.pro), pixels.aupro(0.3))
        precision = pixels.pr_curve()
        yield Curve("pixel_pr", _points(precision.recall), _points(precision.precision), pixels.average_precision())
    except UndefinedMetric:
        return


def _points(values: np.ndarray) -> tuple[float, ...]:
    """Thin a curve for drawing; its first and last points stay."""
    chosen = np.unique(np.linspace(0, len(values) - 1, CURVE_POINTS).round().astype(int))
    return tuple(values[chosen].astype(float).tolist())


def _verdicts(
    category: Category, images: Images, tally: _Tally, scoring: Scoring, threshold: float
) -> tuple[Verdict, ...]:
    scores, raw = tally.scores[scoring], tally.scores["raw"]
    return tuple(
        Verdict(
            path=category.relative(sample),
            defect=sample.defect,
            abnormal_truth=sample.abnormal,
            score=float(scores[index]),
            raw_score=float(raw[index]),
            abnormal=float(scores[index]) > threshold,
        )
        for index, sample in enumerate(images.samples)
    )


def _notes(model: Model, category: str, samples: Sequence[Sample]) -> tuple[str, ...]:
    notes = []
    unmasked = sum(sample.abnormal and sample.mask is None for sample in samples)
    if unmasked:
        notes.append(f"{unmasked} abnormal images have no ground-truth mask and take no part in pixel metrics.")
    if method_named(model.header.method).image_level:
        notes.append("The method's paper judges whole images; the anomaly map is metalad's own.")
    if category != model.header.category:
        notes.append(f"The model was trained on {model.header.category}, not on {category}.")
    return tuple(notes)


def _painter(model: Model, images: Images, scoring: Scoring, threshold: float) -> Callable[[int], Pictures]:
    def draw(index: int) -> Pictures:
        painting = paint(model.detector, images.samples[index], images.pixels[index], scoring)
        return Pictures(
            image=painting.image,
            reconstruction=painting.reconstruction,
            anomaly_map=painting.overlay(threshold),
            ground_truth=painting.white_truth,
        )

    return draw
