"""Thresholds from good images alone: the score that a good image exceeds with a given probability."""

import math

import numpy as np
from jaxtyping import Float

MIN_IMAGES = 2
ENOUGH_ALARMS = 10
"""The order statistic alone is used if at least this many images are expected above it."""
SOME_ALARMS = 2
MOST_ABOVE = 1.5
"""Lower bound: the order statistic that leaves this many times the wanted number of images above, `SOME_ALARMS` or
more; a single one varies too much."""
MOST_ALARMS = 2
"""Upper bound: the order statistic for the wanted rate, or the highest score if that gives at most about this many
times the wanted false alarms."""
DEGREES_OF_FREEDOM = 0.6
"""Of the deviation, for each image but one; less than 1 because the lower half of the scores can only lower it."""
MEDIAN_VARIANCE = math.pi / 2
"""The variance of the median of Gaussian numbers, divided by that of their mean."""
ROUND_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LARGEST_LOG = math.log(np.finfo(np.float64).max)


def threshold(normal_scores: Float[np.ndarray, " images"], false_alarms: float) -> float:
    """Return the score that a further good image exceeds with probability `false_alarms`.

    normal_scores: positive out-of-fold image scores of good images.

    With at least 10 / `false_alarms` images this is their order statistic, which needs no assumption (split
    conformal prediction, Vovk 2005). With fewer, the logarithms of the scores are taken as Gaussian, and the threshold
    is the upper end of its *prediction* interval: median + t · deviation · √(1 + π/2n), with Student's t. The variance
    is the mean of those of the two halves, above and below the median; of the lower half, at most that of the upper
    one, because an image with a near-copy in the training set scores far too low, and would widen the interval. Hence
    the 0.6 (n − 1) degrees of freedom: for Gaussian logarithms, 1.0 to 1.4 % of good images exceed a threshold for 1 %.

    Order statistics limit it, whatever the distribution. It is never so low that more than 1.5 times the wanted number
    of the images (and more than 2) lie above, which scores with a heavy tail would otherwise cause. It is never above
    the k-th highest score, k = ⌊`false_alarms` (n + 1)⌋, which a further image exceeds with a probability of
    k / (n + 1): a few unusual good images widen the deviation, but do not make the threshold useless. If k = 0, it is
    never above the highest score if there are 1 / (2 · `false_alarms`) images or more. False alarms are therefore
    expected at no more than about twice the wanted rate.

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
    most_above = max(SOME_ALARMS, math.ceil(MOST_ABOVE * false_alarms * count))
    least = float(np.sort(normal_scores)[max(0, count - 1 - most_above)])
    if count > ENOUGH_ALARMS:  # a lower rate never lowers the threshold, also where the order statistics end
        least = max(least, _order_statistic(normal_scores, ENOUGH_ALARMS / count))
    logs = np.log(np.maximum(normal_scores, np.finfo(np.float32).tiny).astype(np.float64))
    middle = np.median(logs)
    above, below = (2 * np.square((sign * (logs - middle)).clip(0)).mean() for sign in (1, -1))
    deviation = math.sqrt((above + min(above, below)) / 2)
    freedom = max(1, DEGREES_OF_FREEDOM * (count - 1))
    # Imported here: inference from an exported file does without scipy.
    from scipy import special

    reach = -special.stdtrit(freedom, false_alarms) * math.sqrt(1 + MEDIAN_VARIANCE / count)
    # Two or three images can give more than a float holds; the model file's JSON has no infinity.
    extrapolated = float(np.exp(min(middle + reach * deviation, LARGEST_LOG)))
    if MOST_ALARMS * false_alarms * count >= 1:
        extrapolated = min(extrapolated, _order_statistic(normal_scores, false_alarms))
    return max(least, extrapolated)


def smallest_supported_rate(images: int) -> float:
    """Return the lowest round false-alarm rate that so many good images support: one of them or more lies above it."""
    return next((rate for rate in ROUND_RATES if images * rate >= 1), ROUND_RATES[-1])


def _order_statistic(scores: Float[np.ndarray, " images"], false_alarms: float) -> float:
    rank = min(len(scores), math.ceil((len(scores) + 1) * (1 - false_alarms)))
    return float(np.sort(scores)[rank - 1])
