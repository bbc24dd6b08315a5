"""Exact metrics over scores held in memory. A higher score is more abnormal; labels are true where it should be."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage

from metalad.results.metrics.curves import (
    MAX_FPR,
    Counts,
    PrCurve,
    ProCurve,
    RocCurve,
    UndefinedMetric,
    area,
    area_up_to,
)

Scores = Float[np.ndarray, " n"]
Labels = Shaped[np.ndarray, " n"]
# Images may differ in size: an underscore keeps an axis from being held to its namesakes.
Map = Float[np.ndarray, "_height _width"]
Mask = Bool[np.ndarray, "_height _width"]
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def roc_curve(scores: Scores, labels: Labels) -> RocCurve:
    """Return the ROC curve, one point a distinct score.

    Raises:
        UndefinedMetric: all labels are the same. ValueError: scores not finite, or not as many as labels.
    """
    return _count(scores, labels).roc()


def auroc(scores: Scores, labels: Labels) -> float:
    """Return the area under the ROC curve, in [0, 1]; chance is 0.5."""
    curve = roc_curve(scores, labels)
    return area(curve.fpr, curve.tpr)


def auroc_up_to(scores: Scores, labels: Labels, max_fpr: float = MAX_FPR) -> float:
    """Return the area under the ROC curve up to `max_fpr`, divided by `max_fpr` (Bergmann et al. 2021).

    Perfect is 1, chance `max_fpr` / 2. This is not `sklearn.metrics.roc_auc_score(max_fpr=...)`, which rescales so
    that chance becomes 0.5 (McClish 1989).
    """
    curve = roc_curve(scores, labels)
    return area_up_to(curve.fpr, curve.tpr, max_fpr)


def pr_curve(scores: Scores, labels: Labels) -> PrCurve:
    """Return the precision-recall curve, one point a distinct score.

    Raises:
        UndefinedMetric: all labels are the same. ValueError: scores not finite, or not as many as labels.
    """
    return _count(scores, labels).pr()


def average_precision(scores: Scores, labels: Labels) -> float:
    """Return the average precision, Σ (Rₙ − Rₙ₋₁) Pₙ, in [0, 1]; chance is the part of positives.

    Raises:
        UndefinedMetric: all labels are the same; where all are positive, scikit-learn returns 1.
    """
    return _count(scores, labels).average_precision()


def f1_max(scores: Scores, labels: Labels) -> tuple[float, float]:
    """Return the highest F1 over all thresholds, and the lowest score that it flags.

    Raises:
        UndefinedMetric: all labels are the same.
    """
    return _count(scores, labels).f1_max()


def pro_curve(maps: Sequence[Map], masks: Sequence[Mask]) -> ProCurve:
    """Return the mean per-region overlap over the false-positive rate, both over all images together.

    A region is an 8-connected part of a mask. False positives are counted over the normal pixels of good and of
    defective images (Bergmann et al. 2021).

    Raises:
        UndefinedMetric: no region, or no normal pixel. ValueError: scores not finite, or a map that does not fit its
            mask.
    """
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if anomaly_map.shape != mask.shape:
            raise ValueError(f"a map is {anomaly_map.shape}, its mask {mask.shape}; both must have one size")
    if not len(maps):
        raise UndefinedMetric("there is no map")
    weights = np.concatenate([overlap_weights(mask).ravel() for mask in masks])
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map in maps])
    return _count(scores, np.concatenate([mask.ravel() for mask in masks]), weights).pro()


def aupro(maps: Sequence[Map], masks: Sequence[Mask], max_fpr: float = MAX_FPR) -> float:
    """Return the area under the per-region-overlap curve up to `max_fpr`, divided by `max_fpr`, in [0, 1]."""
    curve = pro_curve(maps, masks)
    return area_up_to(curve.fpr, curve.pro, max_fpr)


def overlap_weights(mask: Mask) -> Float[np.ndarray, "height width"]:
    """Return 1 / (pixels of the region) at each pixel of a region, 0 elsewhere."""
    regions, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    sizes = np.bincount(regions.ravel())
    weights = 1.0 / np.maximum(sizes, 1)
    weights[0] = 0.0
    spread: Float[np.ndarray, "height width"] = weights[regions]
    return spread


def _count(scores: np.ndarray, labels: np.ndarray, overlaps: np.ndarray | None = None) -> Counts:
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, bool)
    if scores.shape != labels.shape:
        raise ValueError(f"{scores.shape} scores do not fit {labels.shape} labels")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; NaN or infinity cannot be ranked")
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1])[: len(scores)])

    def sums(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values.astype(np.float64), starts) if len(starts) else np.zeros(0)

    weights = np.zeros(len(scores)) if overlaps is None else overlaps[order]
    return Counts(scores[starts], sums(labels), sums(~labels), sums(weights))
