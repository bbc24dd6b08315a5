"""Thresholds from normal images alone: the score that a good image exceeds with a wanted probability."""

import math

import numpy as np
from jaxtyping import Float
from scipy import stats

MIN_IMAGES = 2
ENOUGH_ALARMS = 10
"""The order statistic alone is used where this many of the images are expected above it."""
SOME_ALARMS = 2
"""It is a lower bound where at least this many are: the single largest score is too much a matter of chance."""
LARGEST_LOG = math.log(np.finfo(np.float64).max)


def threshold(normal_scores: Float[np.ndarray, " images"], false_alarms: float) -> float:
    """Return the score that a further good image exceeds with probability `false_alarms`.

    normal_scores: positive image scores of good images that took no part in what they are scored by.

    With at least 10 / `false_alarms` images this is their order statistic, which needs no assumption (split
    conformal prediction, Vovk 2005). With fewer the logarithms of the scores are taken as normal, and the
    threshold is the upper end of the *prediction* interval: mean + t · deviation · √(1 + 1/n), with Student's
    t of n − 1 degrees of freedom. It widens as images get fewer: few images cost sensitivity, not false alarms.
    Scores with a heavier tail than that push the threshold up: it is never below the order statistic that
    leaves 2 images above.

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
    width = stats.t.isf(false_alarms, count - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / count)
    # Two or three images can ask for more than a float holds; the model file's JSON has no infinity.
    return max(least, float(np.exp(min(logs.mean() + width, LARGEST_LOG))))


def _order_statistic(scores: Float[np.ndarray, " images"], false_alarms: float) -> float:
    rank = min(len(scores), math.ceil((len(scores) + 1) * (1 - false_alarms)))
    return float(np.sort(scores)[rank - 1])
