"""Judge test images, and turn scores and maps into a report's numbers: in all, per defect, per size, per nuisance."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from tqdm import tqdm

from metalad.data import Images, Sample, read_truth
from metalad.data.corruptions import CORRUPTIONS
from metalad.data.images import resize_map, resize_mask
from metalad.data.sample import GOOD
from metalad.detectors.base import SCORINGS, Detector, Prediction, Scoring
from metalad.nn.pixels import to_batch
from metalad.results.metrics import PixelMetrics, UndefinedMetric, auroc, average_precision, f1_max, roc_curve
from metalad.results.report import Confusion, CorruptionRow, Curve, DefectRow, Metrics, SizeRow
from metalad.results.report import Scoring as ScoringReport

BATCH_SIZE = 16
CURVE_POINTS = 500
SIZE_BOUNDS = (0.0, 0.001, 0.005, 0.02, 0.08, 1.0)
"""Between neighbours lies a size of defect: the part of its image that is abnormal."""


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
        return Resolution(joined(self.model, other.model), joined(self.original, other.original))


def joined(*parts: PixelMetrics) -> PixelMetrics:
    """Return the metrics of all parts together."""
    together = PixelMetrics()
    for part in parts:
        together.merge(part)
    return together


@dataclass(frozen=True)
class Tally:
    """What was measured: an image score each, and pixel metrics a group.

    pixels: groups are `good` and each defect.
    sizes: each image's place between `SIZE_BOUNDS`, -1 where there is no defect or nobody knows its size.
    pixels_by_size: at the model's resolution, one group a size.
    disturbed: image scores with the good images changed, by nuisance.
    """

    scores: Mapping[Scoring, Float32[np.ndarray, " images"]]
    pixels: Mapping[Scoring, Mapping[str, Resolution]]
    sizes: np.ndarray
    pixels_by_size: Mapping[Scoring, Sequence[PixelMetrics]]
    corrupted: Mapping[str, Mapping[Scoring, Float32[np.ndarray, " images"]]] = field(default_factory=dict)


def score_images(detector: Detector, images: Images, *, corruption: bool = False, progress: bool = False) -> Tally:
    """Judge every image; with `corruption`, the good ones once more under each change.

    Raises:
        ImageError: a mask cannot be read. DataError: a mask's size is not its image's.
    """
    groups = {sample.defect for sample in images.samples} | {GOOD}
    tally = Tally(
        scores={scoring: np.zeros(len(images), np.float32) for scoring in SCORINGS},
        pixels={scoring: {group: Resolution.empty() for group in groups} for scoring in SCORINGS},
        sizes=np.full(len(images), -1),
        pixels_by_size={scoring: [PixelMetrics() for _ in SIZE_BOUNDS[1:]] for scoring in SCORINGS},
    )
    with tqdm(total=len(images), desc="evaluate", unit="image", disable=not progress) as bar:
        for start in range(0, len(images), BATCH_SIZE):
            judged = _scored(detector, images.pixels[start : start + BATCH_SIZE])
            for scoring, prediction in judged.items():
                tally.scores[scoring][start : start + BATCH_SIZE] = prediction.score.numpy(force=True)
            for index in range(start, min(start + BATCH_SIZE, len(images))):
                mask = read_truth(images.samples[index], images.sizes[index])
                if mask is not None:
                    maps = {name: each.anomaly_map[index - start].numpy(force=True) for name, each in judged.items()}
                    _add(tally, index, images.samples[index].defect, maps, mask)
                bar.update()
    if not corruption:
        return tally
    return dataclasses.replace(tally, corrupted=_infer_corrupted(detector, images, tally, progress))


def _scored(detector: Detector, pixels: UInt8[np.ndarray, "batch height width 3"]) -> Mapping[Scoring, Prediction]:
    with torch.inference_mode():
        images = to_batch(pixels, detector.device)
        residuals = detector.residuals(images)
        return {scoring: detector.judge(images, residuals, scoring) for scoring in SCORINGS}


def _add(
    tally: Tally,
    index: int,
    defect: str,
    maps: Mapping[Scoring, Float32[np.ndarray, "h w"]],
    mask: Bool[np.ndarray, "height width"],
) -> None:
    tally.sizes[index] = size = size_of(mask)
    for scoring, anomaly_map in maps.items():
        small = resize_mask(mask, anomaly_map.shape)
        group = tally.pixels[scoring][defect]
        group.model.add(anomaly_map, small)
        group.original.add(resize_map(anomaly_map, mask.shape), mask)
        if size >= 0:
            tally.pixels_by_size[scoring][size].add(anomaly_map, small)


def size_of(mask: Bool[np.ndarray, "height width"]) -> int:
    """Return between which `SIZE_BOUNDS` the abnormal part of the image lies, the lower one included; -1 if none."""
    return int(np.searchsorted(SIZE_BOUNDS[1:-1], mask.mean(), side="right")) if mask.any() else -1


def _infer_corrupted(
    detector: Detector, images: Images, tally: Tally, progress: bool
) -> Mapping[str, Mapping[Scoring, Float32[np.ndarray, " images"]]]:
    good = [index for index, sample in enumerate(images.samples) if not sample.abnormal]
    if not good:
        return {}
    corrupted = {name: {scoring: scores.copy() for scoring, scores in tally.scores.items()} for name in CORRUPTIONS}
    with tqdm(total=len(good) * len(CORRUPTIONS), desc="corruptions", unit="image", disable=not progress) as bar:
        for name, change in CORRUPTIONS.items():
            for start in range(0, len(good), BATCH_SIZE):
                batch = good[start : start + BATCH_SIZE]
                # Each image has its own noise, whatever the batch.
                changed = [change(images.pixels[index], np.random.default_rng(index)) for index in batch]
                for scoring, prediction in _scored(detector, np.stack(changed)).items():
                    corrupted[name][scoring][batch] = prediction.score.numpy(force=True)
                bar.update(len(batch))
    return corrupted


def scoring_report(
    name: Scoring, tally: Tally, samples: Sequence[Sample], threshold: float, rate: float
) -> ScoringReport:
    """Return what a tally comes to by one scoring; `rate` is the false-alarm rate that `threshold` was set for."""
    scores, pixels = tally.scores[name], tally.pixels[name]
    truth = np.array([sample.abnormal for sample in samples])
    flagged = scores.astype(np.float64) > threshold
    everything = pixels[GOOD]
    for defect in sorted(set(pixels) - {GOOD}):
        everything = everything.joined(pixels[defect])
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
        per_defect=tuple(_defect_rows(name, tally, samples, threshold)),
        per_size=tuple(_size_rows(name, tally, truth, threshold)),
        per_corruption=tuple(_corruption_rows(name, tally, truth, threshold)),
        curves=tuple(_curves(scores, truth, everything.model)),
        false_alarm_rate=rate,
    )


def _defect_rows(name: Scoring, tally: Tally, samples: Sequence[Sample], threshold: float) -> Iterator[DefectRow]:
    scores, pixels = tally.scores[name], tally.pixels[name]
    truth = np.array([sample.abnormal for sample in samples])
    defects = np.array([sample.defect for sample in samples])
    for defect in sorted(set(pixels) - {GOOD}):
        here = defects == defect
        kept = here | ~truth
        both = pixels[defect].joined(pixels[GOOD])
        yield DefectRow(
            defect=defect,
            images=int(here.sum()),
            found=_found(scores[here], threshold),
            metrics=_metrics(scores[kept], truth[kept], both.model),
            metrics_original=_metrics(scores[kept], truth[kept], both.original),
        )


def _size_rows(name: Scoring, tally: Tally, truth: Bool[np.ndarray, " images"], threshold: float) -> Iterator[SizeRow]:
    scores, good = tally.scores[name], tally.pixels[name][GOOD].model
    for size, (least, below) in enumerate(itertools.pairwise(SIZE_BOUNDS)):
        here = tally.sizes == size
        kept = here | ~truth
        if here.any():
            yield SizeRow(
                least=least,
                below=below,
                images=int(here.sum()),
                found=_found(scores[here], threshold),
                metrics=_metrics(scores[kept], truth[kept], joined(good, tally.pixels_by_size[name][size])),
            )


def _corruption_rows(
    name: Scoring, tally: Tally, truth: Bool[np.ndarray, " images"], threshold: float
) -> Iterator[CorruptionRow]:
    uncorrupted = tally.scores[name]
    before = _defined(lambda: auroc(uncorrupted, truth))
    good = int((~truth).sum())
    for corruption, by_scoring in tally.corrupted.items():
        after = _defined(functools.partial(auroc, by_scoring[name], truth))
        yield CorruptionRow(
            corruption=corruption,
            images=good,
            image_auroc=after,
            image_auroc_loss=None if before is None or after is None else before - after,
            false_alarm_rate=_found(by_scoring[name][~truth], threshold) / good,
            false_alarm_rate_before=_found(uncorrupted[~truth], threshold) / good,
        )


def _found(scores: Float32[np.ndarray, " n"], threshold: float) -> int:
    return int((scores.astype(np.float64) > threshold).sum())


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
