"""Thresholds from good images alone: the score that a good image exceeds with a given probability."""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

MIN_IMAGES = 2
ENOUGH_ALARMS = 10
"""The order statistic alone is used if at least this many images are expected above it."""
SOME_ALARMS = 2
"""The order statistic that leaves this many images above is a lower bound; the single largest score varies too much."""
MEDIAN_VARIANCE = math.pi / 2
"""The variance of the median of Gaussian numbers, divided by that of their mean."""
ROUND_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LARGEST_LOG = math.log(np.finfo(np.float64).max)


def threshold(normal_scores: Float[np.ndarray, " images"], false_alarms: float) -> float:
    """Return the score that a further good image exceeds with probability `false_alarms`.

    normal_scores: positive out-of-fold image scores of good images.

    With at least 10 / `false_alarms` images this is their order statistic, which needs no assumption (split
    conformal prediction, Vovk 2005). With fewer, the logarithms of the scores above their median are taken as the upper
    half of a Gaussian, and the threshold is the upper end of its *prediction* interval: median + t · deviation ·
    √(1 + π/2n), with Student's t of (n − 1)/2 degrees of freedom, because half of the scores determine the deviation.
    Scores below the median are not used: an image with a near-copy in the training set scores far too low, and would
    widen the interval. The interval widens as images get fewer: few images cost sensitivity, not false alarms. Scores
    with a heavier tail raise the threshold: it is never below the order statistic that leaves 2 images above.

    Raises:
        ValueError: fewer than two scores, or `false_alarms` outside (0, 1).
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms must lie between 0 and 1, not {false_alarms}")
    count = len(normal_scores)
    if count < MIN_IMAGES:
        raise ValueError(f"a threshold needs the scores of at least {MIN_IMAGES} good images, not {count}")
    if count * false_alarms >= ENOUGH_ALARMS:
        return _order_statistic(normal_scores, false_alarms)
    least = _order_statistic(normal_scores, max(false_alarms, SOME_ALARMS / count))
    logs = np.log(np.maximum(normal_scores, np.finfo(np.float32).tiny).astype(np.float64))
    middle = np.median(logs)
    deviation = math.sqrt(2 * np.square((logs - middle).clip(0)).mean())
    reach = -special.stdtrit(max(1, (count - 1) / 2), false_alarms) * math.sqrt(1 + MEDIAN_VARIANCE / count)
    # Two or three images can give more than a float holds; the model file's JSON has no infinity.
    return max(least, float(np.exp(min(middle + reach * deviation, LARGEST_LOG))))


def smallest_supported_rate(images: int) -> float:
    """Return the lowest round false-alarm rate that so many good images support: one of them or more lies above it."""
    return next((rate for rate in ROUND_RATES if images * rate >= 1), ROUND_RATES[-1])


def _order_statistic(scores: Float[np.ndarray, " images"], false_alarms: float) -> float:
    rank = min(len(scores), math.ceil((len(scores) + 1) * (1 - false_alarms)))
    return float(np.sort(scores)[rank - 1])
