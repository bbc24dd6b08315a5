"""Accumulate the scores and maps of test images, and compute the numbers of a report: in all, per defect and so on."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32

from metalad.data.images import resize_map, resize_mask
from metalad.data.sample import GOOD
from metalad.results.metrics import PixelMetrics, UndefinedMetric, auroc, average_precision, f1_max, roc_curve
from metalad.results.report import Confusion, CorruptionRow, DefectRow, Metrics, ScoringReport, SizeRow
from metalad.results.separation import separation
from metalad.visualization.plots import Curve

CURVE_POINTS = 500
SIZE_BOUNDS = (0.0, 0.001, 0.005, 0.02, 0.08, 1.0)
"""Bounds of the sizes of defects: the fraction of its image that is anomalous."""

ScoringName = Literal["calibrated", "raw"]


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """Pixel metrics of one image, at the model's resolution and at the image's own."""

    model: PixelMetrics
    original: PixelMetrics


@dataclass(frozen=True, eq=False)
class MeasuredImage:
    """One test image: its scores, and what its pixels add to the metrics.

    defect: `good` or the kind of defect. label: True if anomalous. scores, pixels: by scoring; no pixels for an
    anomalous image without a mask. size: index into `SIZE_BOUNDS`, -1 without a defect of known size.
    corrupted: scores under each corruption, by corruption and scoring; of good images only.
    """

    defect: str
    label: bool
    scores: Mapping[ScoringName, float]
    pixels: Mapping[ScoringName, ImagePixels]
    size: int
    corrupted: Mapping[str, Mapping[ScoringName, float]] = field(default_factory=dict)


def measure_pixels(
    maps: Mapping[ScoringName, Float32[np.ndarray, "_ _"]],
    mask: Bool[np.ndarray, "height width"] | None,
    *,
    anomalous: bool = False,
) -> dict[ScoringName, ImagePixels]:
    """Compare the maps of one image, at the model's resolution, with its mask, at the image's own.

    At a resolution at which the mask of an anomalous image is empty, its pixels are left out: those of the defect would
    count as good ones.
    """
    if mask is None:
        return {}
    found = {}
    for scoring, anomaly_map in maps.items():
        found[scoring] = ImagePixels(PixelMetrics(), PixelMetrics())
        resized = resize_mask(mask, anomaly_map.shape)
        if not anomalous or resized.any():
            found[scoring].model.add(anomaly_map, resized)
        if not anomalous or mask.any():
            found[scoring].original.add(resize_map(anomaly_map, mask.shape), mask)
    return found


def size_index(mask: Bool[np.ndarray, "height width"] | None) -> int:
    """Return the index of the lower bound in `SIZE_BOUNDS` of the anomalous fraction; -1 if there is none."""
    if mask is None or not mask.any():
        return -1
    return int(np.searchsorted(SIZE_BOUNDS[1:-1], mask.mean(), side="right"))


class Evaluation:
    """Accumulates measured images; memory grows by a few numbers for each."""

    def __init__(self, scorings: Sequence[ScoringName]) -> None:
        self._images: list[MeasuredImage] = []
        self._pixels: dict[tuple[ScoringName, str], ImagePixels] = {}
        self._by_size: dict[tuple[ScoringName, int], PixelMetrics] = {}
        self._scorings = tuple(scorings)

    def add(self, image: MeasuredImage) -> None:
        """Add one image."""
        for scoring, pixels in image.pixels.items():
            group = self._group(scoring, image.defect)
            group.model.merge(pixels.model)
            group.original.merge(pixels.original)
            if image.size >= 0:
                self._by_size.setdefault((scoring, image.size), PixelMetrics()).merge(pixels.model)
        # Without the pixels, which the groups hold now.
        self._images.append(MeasuredImage(image.defect, image.label, image.scores, {}, image.size, image.corrupted))

    def report(self, scoring: ScoringName, threshold: float, rate: float | None) -> ScoringReport:
        """Return the results by one scoring; `rate` is the false-alarm rate that the threshold was set for."""
        scores, labels = self._scores(scoring), self._labels()
        flagged = scores.astype(np.float64) > threshold
        everything = _joined(*(self._group(scoring, defect) for defect in (GOOD, *self._defects())))
        return ScoringReport(
            name=scoring,
            threshold=threshold,
            metrics_model=_metrics(scores, labels, everything.model),
            metrics_original=_metrics(scores, labels, everything.original),
            confusion=Confusion(
                tp=int((flagged & labels).sum()),
                fp=int((flagged & ~labels).sum()),
                tn=int((~flagged & ~labels).sum()),
                fn=int((~flagged & labels).sum()),
            ),
            per_defect=tuple(self._defect_rows(scoring, threshold)),
            per_size=tuple(self._size_rows(scoring, threshold)),
            per_corruption=tuple(self._corruption_rows(scoring, threshold)),
            curves=tuple(_curves(scores, labels, everything.model)),
            false_alarm_rate=rate,
            separation=separation(scores, labels),
        )

    def _group(self, scoring: ScoringName, defect: str) -> ImagePixels:
        return self._pixels.setdefault((scoring, defect), ImagePixels(PixelMetrics(), PixelMetrics()))

    def _defects(self) -> list[str]:
        return sorted({image.defect for image in self._images} - {GOOD})

    def _scores(self, scoring: ScoringName) -> Float32[np.ndarray, " images"]:
        return np.array([image.scores[scoring] for image in self._images], np.float32)

    def _labels(self) -> Bool[np.ndarray, " images"]:
        return np.array([image.label for image in self._images], bool)

    def _defect_rows(self, scoring: ScoringName, threshold: float) -> Iterator[DefectRow]:
        scores, labels = self._scores(scoring), self._labels()
        defects = np.array([image.defect for image in self._images])
        for defect in self._defects():
            here = defects == defect
            compared = here | ~labels
            both = _joined(self._group(scoring, defect), self._group(scoring, GOOD))
            yield DefectRow(
                defect=defect,
                images=int(here.sum()),
                found=_above(scores[here], threshold),
                metrics=_metrics(scores[compared], labels[compared], both.model),
                metrics_original=_metrics(scores[compared], labels[compared], both.original),
            )

    def _size_rows(self, scoring: ScoringName, threshold: float) -> Iterator[SizeRow]:
        scores, labels = self._scores(scoring), self._labels()
        sizes = np.array([image.size for image in self._images])
        for size, (least, below) in enumerate(itertools.pairwise(SIZE_BOUNDS)):
            here = sizes == size
            compared = here | ~labels
            if here.any():
                pixels = PixelMetrics()
                pixels.merge(self._group(scoring, GOOD).model)
                pixels.merge(self._by_size[scoring, size])
                yield SizeRow(
                    least=least,
                    below=below,
                    images=int(here.sum()),
                    found=_above(scores[here], threshold),
                    metrics=_metrics(scores[compared], labels[compared], pixels),
                )

    def _corruption_rows(self, scoring: ScoringName, threshold: float) -> Iterator[CorruptionRow]:
        scores, labels = self._scores(scoring), self._labels()
        before = _defined(lambda: auroc(scores, labels))
        good = [image for image in self._images if not image.label]
        for corruption in good[0].corrupted if good else ():
            corrupted = scores.copy()
            corrupted[~labels] = [image.corrupted[corruption][scoring] for image in good]
            after = _defined(functools.partial(auroc, corrupted, labels))
            yield CorruptionRow(
                corruption=corruption,
                images=len(good),
                image_auroc=after,
                image_auroc_loss=None if before is None or after is None else before - after,
                false_alarm_rate=_above(corrupted[~labels], threshold) / len(good),
                false_alarm_rate_before=_above(scores[~labels], threshold) / len(good),
            )


def _joined(*groups: ImagePixels) -> ImagePixels:
    together = ImagePixels(PixelMetrics(), PixelMetrics())
    for group in groups:
        together.model.merge(group.model)
        together.original.merge(group.original)
    return together


def _above(scores: Float32[np.ndarray, " n"], threshold: float) -> int:
    return int((scores.astype(np.float64) > threshold).sum())


def _metrics(scores: np.ndarray, labels: np.ndarray, pixels: PixelMetrics) -> Metrics:
    return Metrics(
        pixel_auroc_fpr30=_defined(lambda: pixels.auroc_up_to(0.3)),
        pixel_auroc=_defined(pixels.auroc),
        pixel_aupro=_defined(lambda: pixels.aupro(0.3)),
        pixel_ap=_defined(pixels.average_precision),
        pixel_f1max=_defined(lambda: pixels.f1_max()[0]),
        image_auroc=_defined(lambda: auroc(scores, labels)),
        image_ap=_defined(lambda: average_precision(scores, labels)),
        image_f1max=_defined(lambda: f1_max(scores, labels)[0]),
    )


def _defined(metric: Callable[[], float]) -> float | None:
    try:
        return float(metric())
    except UndefinedMetric:
        return None


def _curves(scores: np.ndarray, labels: np.ndarray, pixels: PixelMetrics) -> Iterator[Curve]:
    try:
        image = roc_curve(scores, labels)
        yield Curve("image_roc", _points(image.fpr), _points(image.tpr), auroc(scores, labels))
        pixel = pixels.roc_curve()
        yield Curve("pixel_roc", _points(pixel.fpr), _points(pixel.tpr), pixels.auroc())
        overlap = pixels.pro_curve()
        yield Curve("pixel_pro", _points(overlap.fpr), _points(overlap.pro), pixels.aupro(0.3))
        precision = pixels.pr_curve()
        yield Curve("pixel_pr", _points(precision.recall), _points(precision.precision), pixels.average_precision())
    except UndefinedMetric:
        return


def _points(values: np.ndarray) -> tuple[float, ...]:
    """Select points of a curve for drawing; the first and the last are included."""
    selected = np.unique(np.linspace(0, len(values) - 1, CURVE_POINTS).round().astype(int))
    return tuple(values[selected].astype(float).tolist())
