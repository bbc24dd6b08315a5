"""Find good images that stand out by their scores, and thresholds that are useless because of such images."""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

MIN_IMAGES = 20
"""With fewer images, the quartiles of their scores are too uncertain to name any."""
ENOUGH_IMAGES = 10
"""With fewer images, a high threshold shows that they are too few, not that some of them are defective."""
FALSE_NAMES = 0.01
"""Probability that one or more images are named if the logarithms of all scores are Gaussian."""
QUARTILE = 0.6745
"""The upper quartile of the standard Gaussian distribution."""
MIN_RATIO = 2.0
"""An image that scores less than this multiple of the median does not stand out, however equal the others are."""
MAX_RATIO = 1e4
"""A threshold that is a larger multiple of the median score lets every defect pass."""
SMALLEST = 1e-30


def standing_out(scores: Float[np.ndarray, " images"]) -> list[int]:
    """Return the indices of images that score far above the others, the highest score first.

    The logarithms of the scores are taken as Gaussian, with their median and their interquartile range, which a few
    defective images hardly change. An image stands out if a Gaussian sample of this size would hold so high a value
    with a probability of at most `FALSE_NAMES` (Bonferroni). If twice the distance from the median to the upper
    quartile is smaller than the interquartile range, it is used instead: near-copies among the training images score
    far too low, and widen the lower half.

    scores: positive image scores of good images, as far as possible out-of-fold.
    """
    if len(scores) < MIN_IMAGES:
        return []
    logs = np.log(np.maximum(scores, np.finfo(np.float32).tiny).astype(np.float64))
    lower, middle, upper = np.quantile(logs, (0.25, 0.5, 0.75))
    deviation = min(upper - lower, 2 * (upper - middle)) / (2 * QUARTILE)
    limit = middle + max(-special.ndtri(FALSE_NAMES / len(scores)) * deviation, math.log(MIN_RATIO))
    return [int(index) for index in np.argsort(-logs, kind="stable") if logs[index] > limit]


def useless_threshold(threshold: float, scores: Float[np.ndarray, " images"]) -> str | None:
    """Describe why a threshold cannot separate good from anomalous images; None if it may.

    It is not finite, about 0 (as of images that the model reproduces exactly), or more than `MAX_RATIO` times the
    median score although there are enough images.
    """
    if not (math.isfinite(threshold) and np.isfinite(scores).all()):
        return "the scores or the threshold are not finite"
    if threshold < SMALLEST:
        return f"the threshold is {threshold:.2g}, about 0"
    middle = float(np.median(scores))
    if len(scores) >= ENOUGH_IMAGES and threshold > MAX_RATIO * middle:
        return f"the threshold is {threshold:.2g}, more than {MAX_RATIO:,.0f} times the median score of {middle:.2g}"
    return None
