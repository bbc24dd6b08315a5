"""Curves and their areas, from counts of positives and negatives at each distinct score, highest score first.

The exact metrics count at every distinct score, the streaming ones in fine bins; from the counts on they are one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

MAX_FPR = 0.3
"""The false-positive rate up to which MVTec's authors integrate (Bergmann et al. 2021, IJCV 129, 4.2)."""


class UndefinedMetric(ValueError):
    """A metric that does not exist on these data: all labels are the same, or no region is annotated."""


@dataclass(frozen=True)
class RocCurve:
    """True- over false-positive rate, from (0, 0) to (1, 1); a threshold flags all scores at or above it."""

    fpr: Float64[np.ndarray, " points"]
    tpr: Float64[np.ndarray, " points"]
    thresholds: Float64[np.ndarray, " points"]


@dataclass(frozen=True)
class PrCurve:
    """Precision over recall, recall rising."""

    recall: Float64[np.ndarray, " points"]
    precision: Float64[np.ndarray, " points"]
    thresholds: Float64[np.ndarray, " points"]


@dataclass(frozen=True)
class ProCurve:
    """Mean overlap of the annotated regions over the false-positive rate of all normal pixels."""

    fpr: Float64[np.ndarray, " points"]
    pro: Float64[np.ndarray, " points"]
    thresholds: Float64[np.ndarray, " points"]


@dataclass(frozen=True)
class Counts:
    """What lies at each distinct score, scores falling.

    overlaps: each positive pixel weighed by 1 / (pixels of its region); its sum is the number of regions.
    """

    scores: Float64[np.ndarray, " n"]
    positives: Float64[np.ndarray, " n"]
    negatives: Float64[np.ndarray, " n"]
    overlaps: Float64[np.ndarray, " n"]

    def roc(self) -> RocCurve:
        """Return the ROC curve.

        Raises:
            UndefinedMetric: no positives, or no negatives.
        """
        return RocCurve(self._rate(self.negatives), self._rate(self.positives), self._thresholds())

    def pro(self) -> ProCurve:
        """Return the per-region-overlap curve.

        Raises:
            UndefinedMetric: no regions, or no normal pixels.
        """
        return ProCurve(self._rate(self.negatives), self._rate(self.overlaps), self._thresholds())

    def pr(self) -> PrCurve:
        """Return the precision-recall curve, without scikit-learn's appended point at recall 0.

        Raises:
            UndefinedMetric: no positives, or no negatives: precision would be 1 whatever the scores.
        """
        recall = self._rate(self.positives)[1:]
        self._require(self.negatives)
        found = np.cumsum(self.positives)
        return PrCurve(recall, found / (found + np.cumsum(self.negatives)), self.scores)

    def average_precision(self) -> float:
        """Return Σ (Rₙ − Rₙ₋₁) Pₙ, as scikit-learn defines it."""
        curve = self.pr()
        return float(np.sum(np.diff(curve.recall, prepend=0) * curve.precision))

    def f1_max(self) -> tuple[float, float]:
        """Return the highest F1 = 2PR / (P + R) over all thresholds, and the threshold that gives it."""
        curve = self.pr()
        total = curve.precision + curve.recall
        f1 = 2 * curve.precision * curve.recall / np.where(total > 0, total, 1)
        best = int(np.argmax(f1))
        return float(f1[best]), float(curve.thresholds[best])

    def tied(self) -> float:
        """Return the greatest error of the AUROC if each score stood for a range: half the tied pairs' part.

        Raises:
            UndefinedMetric: no positives, or no negatives.
        """
        steps = np.diff(self._rate(self.positives)), np.diff(self._rate(self.negatives))
        return float(np.sum(steps[0] * steps[1]) / 2)

    def _thresholds(self) -> Float64[np.ndarray, " points"]:
        return np.concatenate([[np.inf], self.scores])

    def _require(self, counts: Float64[np.ndarray, " n"]) -> None:
        if counts.sum() <= 0:
            which = "normal" if counts is self.negatives else "abnormal"
            raise UndefinedMetric(f"there is nothing {which} among the labels")

    def _rate(self, counts: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " points"]:
        self._require(counts)
        reached = np.concatenate([[0.0], np.cumsum(counts)])
        rate: Float64[np.ndarray, " points"] = reached / reached[-1]
        return rate


def area(x: Float64[np.ndarray, " points"], y: Float64[np.ndarray, " points"]) -> float:
    """Return the area under a curve by trapezia, which is what ties call for."""
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def area_up_to(x: Float64[np.ndarray, " points"], y: Float64[np.ndarray, " points"], limit: float) -> float:
    """Return the area up to x = `limit` divided by `limit`, y interpolated linearly there.

    Raises:
        ValueError: `limit` outside (0, 1].
    """
    if not 0 < limit <= 1:
        raise ValueError(f"the limit of the false-positive rate is {limit}; it must lie in (0, 1]")
    inside = int(np.searchsorted(x, limit, side="right"))
    end = np.interp(limit, x[inside - 1 : inside + 1], y[inside - 1 : inside + 1])
    return area(np.append(x[:inside], limit), np.append(y[:inside], end)) / limit
