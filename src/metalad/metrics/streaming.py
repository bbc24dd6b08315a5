"""Pixel metrics that need no more memory for a million images than for one.

Scores are counted in bins of float32's own bits, which sort like the numbers. The bins are as fine as the range of
the scores seen so far allows: at most `BINS` of them, so over a range of 20 octaves each is 1 part in 8,000 wide, and
over a narrow range each holds one number. Ranges widen by merging bins, so the order of images does not matter.
"""

import numpy as np
from jaxtyping import Bool, Float32, UInt32

from metalad.metrics.curves import MAX_FPR, Counts, PrCurve, ProCurve, RocCurve, area, area_up_to
from metalad.metrics.exact import overlap_weights

BINS = 1 << 18
CURVE_POINTS = 2_000
SIGN = np.uint32(1 << 31)


class PixelMetrics:
    """Counts of normal and abnormal pixels by score, from which every pixel metric follows."""

    def __init__(self) -> None:
        self._shift = 0
        self._low = 0
        # Rows: all pixels, abnormal pixels, abnormal pixels weighed by 1 / (pixels of their region).
        self._counts = np.zeros((3, 0))

    def add(self, anomaly_map: Float32[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]) -> None:
        """Count an image's pixels.

        Raises:
            ValueError: the map and the mask differ in size, or the map is not finite.
        """
        if anomaly_map.shape != mask.shape:
            raise ValueError(f"the map is {anomaly_map.shape}, its mask {mask.shape}; both must have one size")
        keys = _keys(anomaly_map)
        if not len(keys):
            return
        low, high = int(keys.min()), int(keys.max())
        # Above every finite number lie infinity and NaN, below the lowest their negative twins.
        if high >= int(_key(np.inf)) or low <= int(_key(-np.inf)):
            raise ValueError("the anomaly map must be finite; NaN or infinity cannot be ranked")
        self._cover(low, high)
        self._counts[0] += self._binned(keys)
        if mask.any():
            chosen = mask.ravel()
            self._counts[1] += self._binned(keys[chosen])
            self._counts[2] += self._binned(keys[chosen], overlap_weights(mask).ravel()[chosen])

    def merge(self, other: "PixelMetrics") -> None:
        """Count what another has counted, as if all its images had been added here."""
        if not other._counts.shape[1]:
            return
        low, high = other._range()
        self._cover(low, high)
        shift = self._shift - other._shift  # never negative: a range that holds the other's needs bins as wide
        start = (other._low >> shift) - self._low
        bins = (np.arange(other._counts.shape[1]) + other._low >> shift) - self._low
        size = int(bins[-1]) - start + 1
        for row, counts in zip(self._counts, other._counts, strict=True):
            row[start : start + size] += np.bincount(bins - start, counts, size)

    def auroc(self) -> float:
        """Return the area under the ROC curve over all pixels."""
        curve = self._totals().roc()
        return area(curve.fpr, curve.tpr)

    def auroc_up_to(self, max_fpr: float = MAX_FPR) -> float:
        """Return the area under the ROC curve up to `max_fpr`, divided by `max_fpr`; see `metrics.auroc_up_to`."""
        curve = self._totals().roc()
        return area_up_to(curve.fpr, curve.tpr, max_fpr)

    def aupro(self, max_fpr: float = MAX_FPR) -> float:
        """Return the area under the per-region-overlap curve up to `max_fpr`; see `metrics.aupro`."""
        curve = self._totals().pro()
        return area_up_to(curve.fpr, curve.pro, max_fpr)

    def average_precision(self) -> float:
        """Return the average precision over all pixels."""
        return self._totals().average_precision()

    def f1_max(self) -> tuple[float, float]:
        """Return the highest F1 over all pixels, and its threshold to within a bin."""
        return self._totals().f1_max()

    def error_bound(self) -> float:
        """Return how far `auroc` can be from the exact value: half the part of pairs that share a bin."""
        return self._totals().tied()

    def roc_curve(self) -> RocCurve:
        """Return the ROC curve, thinned for drawing."""
        curve = self._totals().roc()
        kept = _thinned(len(curve.fpr))
        return RocCurve(curve.fpr[kept], curve.tpr[kept], curve.thresholds[kept])

    def pr_curve(self) -> PrCurve:
        """Return the precision-recall curve, thinned for drawing."""
        curve = self._totals().pr()
        kept = _thinned(len(curve.recall))
        return PrCurve(curve.recall[kept], curve.precision[kept], curve.thresholds[kept])

    def pro_curve(self) -> ProCurve:
        """Return the per-region-overlap curve, thinned for drawing."""
        curve = self._totals().pro()
        kept = _thinned(len(curve.fpr))
        return ProCurve(curve.fpr[kept], curve.pro[kept], curve.thresholds[kept])

    def _totals(self) -> Counts:
        used = np.flatnonzero(self._counts[0])[::-1]
        everything, positives, overlaps = self._counts[:, used]
        # The middle of a bin stands for its scores.
        middle = (((used + self._low) << self._shift) + ((1 << self._shift) >> 1)).astype(np.uint32)
        return Counts(_values(middle), positives, everything - positives, overlaps)

    def _range(self) -> tuple[int, int]:
        return self._low << self._shift, ((self._low + self._counts.shape[1]) << self._shift) - 1

    def _cover(self, low: int, high: int) -> None:
        """Widen the bins' range to hold keys from `low` to `high`, merging bins where they grow too many."""
        if self._counts.shape[1]:
            old_low, old_high = self._range()
            if old_low <= low and high <= old_high:
                return
            low, high = min(low, old_low), max(high, old_high)
        shift = self._shift
        while (high >> shift) - (low >> shift) >= BINS:
            shift += 1
        self._coarsen(shift)
        start, size = low >> shift, (high >> shift) - (low >> shift) + 1
        counts = np.zeros((3, size))
        offset = self._low - start
        counts[:, offset : offset + self._counts.shape[1]] = self._counts
        self._low, self._counts = start, counts

    def _coarsen(self, shift: int) -> None:
        """Merge neighbouring bins until each spans 2**`shift` keys."""
        step = shift - self._shift
        if step and self._counts.shape[1]:
            bins = (np.arange(self._counts.shape[1]) + self._low >> step) - (self._low >> step)
            self._counts = np.stack([np.bincount(bins, row) for row in self._counts])
            self._low >>= step
        self._shift = shift

    def _binned(self, keys: UInt32[np.ndarray, " n"], weights: np.ndarray | None = None) -> np.ndarray:
        bins = (keys >> np.uint32(self._shift)).astype(np.intp)
        bins -= self._low
        return np.bincount(bins, weights, self._counts.shape[1])


def _keys(values: Float32[np.ndarray, "height width"]) -> UInt32[np.ndarray, " n"]:
    """Return integers that sort as the numbers do: the bits, negatives flipped; -0 counts as 0."""
    bits = np.add(values.ravel(), 0, dtype=np.float32).view(np.uint32)
    if values.size and values.min() >= 0:
        return bits | SIGN
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _key(value: float) -> np.uint32:
    bits = np.float32(value).view(np.uint32)
    return np.uint32(~bits if bits & SIGN else bits | SIGN)


def _values(keys: UInt32[np.ndarray, " n"]) -> np.ndarray:
    bits = np.where(keys & SIGN, keys & ~SIGN, ~keys)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def _thinned(points: int) -> np.ndarray:
    return np.unique(np.linspace(0, points - 1, min(points, CURVE_POINTS)).round().astype(int))
