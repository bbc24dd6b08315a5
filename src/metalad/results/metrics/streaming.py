"""Pixel metrics that need no more memory for a million images than for one.

Scores are counted in bins of float32's own bits, which sort like the numbers. Only bins that hold a pixel are kept. A
bin holds one number until there are more than `BINS` of them; then all bins double their width in bits, as often as
needed. So up to `BINS` distinct scores every metric is exact, outliers cost a bin each, and as the final width follows
from the set of scores alone, the order of images does not matter.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt32

from metalad.results.metrics.curves import MAX_FPR, Counts, PrCurve, ProCurve, RocCurve, area, area_up_to
from metalad.results.metrics.exact import overlap_weights

BINS = 1 << 18
BLOCK_BITS = 12
BLOCK = 1 << BLOCK_BITS
TABLE = 1 << 22
PENDING = BINS
CURVE_POINTS = 2_000
SIGN = np.uint32(1 << 31)


class PixelMetrics:
    """Counts of normal and abnormal pixels by score, from which every pixel metric follows."""

    def __init__(self) -> None:
        self._shift = 0
        self._bins = np.zeros(0, np.uint32)
        # Rows: all pixels, anomalous pixels, anomalous pixels weighted by 1 / (pixels of their region).
        self._counts = np.zeros((3, 0))
        # Bins and counts that are not included yet: many are included at once, as each time all bins are sorted.
        self._pending: list[tuple[UInt32[np.ndarray, " _"], Float64[np.ndarray, "3 _"]]] = []
        self._pending_bins = 0

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
        # Above every finite number lie infinity and NaN, below the lowest their negative twins.
        if keys.max() >= _key(np.inf) or keys.min() <= _key(-np.inf):
            raise ValueError("the anomaly map must be finite; NaN or infinity cannot be ranked")
        keys >>= np.uint32(self._shift)
        abnormal = keys[mask.ravel()]
        bins, pixels = _distinct(keys)
        counts = np.zeros((3, len(bins)))
        counts[0] = pixels
        if len(abnormal):
            place = np.searchsorted(bins, abnormal)
            counts[1] = np.bincount(place, minlength=len(bins))
            counts[2] = np.bincount(place, overlap_weights(mask)[mask], len(bins))
        self._add_pending(bins, counts)

    def merge(self, other: "PixelMetrics") -> None:
        """Count what another has counted, as if all its images had been added here."""
        if other._shift > self._shift:
            self._include_pending()
        if other._shift > self._shift:  # still, after the inclusion, which may have widened the bins
            self._bins = self._bins >> np.uint32(other._shift - self._shift)  # equal bins are joined with the next
            self._shift = other._shift
        for bins, counts in ((other._bins, other._counts), *other._pending):
            if len(bins):  # included bins may have widened in the meantime
                self._add_pending(bins >> np.uint32(self._shift - other._shift), counts)

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
        """Return the highest F1 over all pixels at the bins' edges, and the threshold that gives it."""
        return self._totals().f1_max()

    def error_bound(self) -> float:
        """Return how far `auroc` can be from the exact value: half the part of pairs that share a wide bin."""
        bound = self._totals().tied()
        return bound if self._shift else 0.0

    def roc_curve(self) -> RocCurve:
        """Return the ROC curve, thinned for drawing."""
        curve = self._totals().roc()
        kept = _thinned(curve.fpr, curve.tpr)
        return RocCurve(curve.fpr[kept], curve.tpr[kept], curve.thresholds[kept])

    def pr_curve(self) -> PrCurve:
        """Return the precision-recall curve, thinned for drawing."""
        curve = self._totals().pr()
        kept = _thinned(curve.recall, curve.precision)
        return PrCurve(curve.recall[kept], curve.precision[kept], curve.thresholds[kept])

    def pro_curve(self) -> ProCurve:
        """Return the per-region-overlap curve, thinned for drawing."""
        curve = self._totals().pro()
        kept = _thinned(curve.fpr, curve.pro)
        return ProCurve(curve.fpr[kept], curve.pro[kept], curve.thresholds[kept])

    def _totals(self) -> Counts:
        self._include_pending()
        everything, positives, overlaps = self._counts[:, ::-1]
        # A bin's lowest number is its threshold: it flags the whole bin and nothing below.
        thresholds = _values(self._bins[::-1] << np.uint32(self._shift))
        return Counts(thresholds, positives, everything - positives, overlaps)

    def _add_pending(self, bins: UInt32[np.ndarray, " n"], counts: Float64[np.ndarray, "3 n"]) -> None:
        """Keep bins of the present width until enough have come together."""
        self._pending.append((bins, counts))
        self._pending_bins += len(bins)
        if self._pending_bins > PENDING:
            self._include_pending()

    def _include_pending(self) -> None:
        if self._pending:
            pending, self._pending, self._pending_bins = self._pending, [], 0
            bins, counts = zip(*pending, strict=True)
            self._include(np.concatenate(bins), np.concatenate(counts, axis=1))

    def _include(self, bins: UInt32[np.ndarray, " n"], counts: Float64[np.ndarray, "3 n"]) -> None:
        """Add bins of the present width, join equal ones, and widen all until there are at most `BINS`."""
        bins, counts = np.concatenate([self._bins, bins]), np.concatenate([self._counts, counts], axis=1)
        order = np.argsort(bins, kind="stable")  # a merge of two sorted runs
        bins = bins[order]
        step = 0
        while len(_starts(bins >> np.uint32(step))) > BINS:
            step += 1
        bins >>= np.uint32(step)
        starts = _starts(bins)
        place = np.empty(len(bins), np.intp)
        place[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(bins)))
        self._bins = bins[starts]
        self._counts = np.stack([np.bincount(place, row, len(starts)) for row in counts])
        self._shift += step


def _distinct(keys: UInt32[np.ndarray, " n"]) -> tuple[UInt32[np.ndarray, " m"], np.ndarray]:
    """Return the distinct keys, sorted, and how many of each there are.

    Keys fall into few blocks of neighbours, once the bins have widened: a table of these blocks counts 20 times
    faster than sorting does.
    """
    blocks = keys >> np.uint32(BLOCK_BITS)
    occupied = np.flatnonzero(np.bincount(blocks.astype(np.intp)))
    if len(occupied) << BLOCK_BITS > TABLE:
        ordered = np.sort(keys)
        starts = _starts(ordered)
        return ordered[starts], np.diff(starts, append=len(keys))
    slots = np.zeros(occupied[-1] + 1, np.intp)
    slots[occupied] = np.arange(len(occupied)) << BLOCK_BITS
    counts = np.bincount(slots[blocks] + (keys & np.uint32(BLOCK - 1)))
    used = np.flatnonzero(counts)
    bins = (occupied[used >> BLOCK_BITS] << BLOCK_BITS) + (used & (BLOCK - 1))
    return bins.astype(np.uint32), counts[used]


def _starts(ordered: UInt32[np.ndarray, " n"]) -> np.ndarray:
    """Return where each distinct number begins."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])


def _keys(values: Float32[np.ndarray, "height width"]) -> UInt32[np.ndarray, " n"]:
    """Return integers that sort as the numbers do: the bits, negatives flipped; -0 counts as 0."""
    bits: np.ndarray = np.add(values.ravel(), 0, dtype=np.float32).view(np.uint32)
    if values.size and values.min() >= 0:
        return bits | SIGN
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _key(value: float) -> np.uint32:
    bits = np.float32(value).view(np.uint32)
    return np.uint32(~bits if bits & SIGN else bits | SIGN)


def _values(keys: UInt32[np.ndarray, " n"]) -> np.ndarray:
    bits = np.where(keys & SIGN, keys & ~SIGN, ~keys)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def _thinned(x: Float64[np.ndarray, " points"], y: Float64[np.ndarray, " points"]) -> np.ndarray:
    """Return the indices of at most `CURVE_POINTS` points, spread evenly along the curve's length."""
    if len(x) <= CURVE_POINTS:
        return np.arange(len(x))
    along = np.cumsum(np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0])))
    return np.unique(np.searchsorted(along, np.linspace(0, along[-1], CURVE_POINTS)))
