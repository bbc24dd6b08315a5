"""Thresholds: rates of false alarms, monotonicity, scale, and numerical limits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from metalad.inference.threshold import smallest_supported_rate, threshold

RATES = st.floats(1e-6, 1 - 1e-6)
SCORES = arrays.arrays(np.float32, st.integers(2, 60), elements=st.floats(2**-10, 2**10, width=32))


@pytest.mark.parametrize(
    ("count", "wanted"), [(3, 0.01), (3, 0.2), (10, 0.01), (10, 0.05), (10, 0.1), (30, 0.01), (30, 0.1), (60, 0.01)]
)
def test_good_images_exceed_it_at_the_wanted_rate(count: int, wanted: float) -> None:
    """The mean over training sets of the probability that one more good image exceeds the threshold."""
    rng = np.random.default_rng(count)
    thresholds = np.array([threshold(rng.lognormal(1, 0.7, count), wanted) for _ in range(3000)])
    false_alarms = stats.lognorm(0.7, scale=math.e).sf(thresholds)
    error = false_alarms.std() / math.sqrt(len(false_alarms))
    is_limited = 2 * wanted * count >= 1  # by the highest score
    assert 0.75 * wanted - 4 * error < false_alarms.mean() < (2 if is_limited else 1.4) * wanted + 4 * error
    assert error < 0.15 * wanted  # otherwise the test could not fail


@pytest.mark.parametrize("distribution", [stats.pareto(1.2), stats.lognorm(3), stats.uniform])
def test_the_rate_is_at_most_doubled_for_any_tail_if_an_alarm_is_expected(distribution: stats.rv_continuous) -> None:
    """The order statistics bound the mean rate for any distribution of scores."""
    rng = np.random.default_rng(1)
    draws = [threshold(distribution.rvs(size=60, random_state=rng), 0.05) for _ in range(800)]
    false_alarms = distribution.sf(np.array(draws))
    assert 0.015 < false_alarms.mean() < 0.1


@pytest.mark.parametrize(("count", "is_limited"), [(49, False), (50, True), (99, True)])
def test_the_highest_score_is_the_limit_if_twice_the_rate_is_kept(count: int, is_limited: bool) -> None:
    """Of 50 images and a new one, each is the highest with a probability of 2 %."""
    scores = np.exp(np.tile([-1.0, 1.0], 50)[:count])
    assert (threshold(scores, 0.01) <= scores.max()) == is_limited


@pytest.mark.parametrize(("count", "above"), [(199, 1), (299, 2), (400, 3)])
def test_a_wide_deviation_does_not_raise_it_above_the_order_statistic(count: int, above: int) -> None:
    """A further image is among the k highest of n + 1 with a probability of k / (n + 1): at most 1 %."""
    scores = np.exp(np.random.default_rng(0).uniform(-1, 1, count))  # the Gaussian rule gives more than the highest
    assert threshold(scores, 0.01) == np.sort(scores)[-1 - above]


@pytest.mark.parametrize("distribution", [stats.uniform, stats.pareto(1.2), stats.expon])
def test_many_images_give_the_wanted_rate_for_any_distribution(distribution: stats.rv_continuous) -> None:
    rng = np.random.default_rng(0)
    draws = [threshold(distribution.rvs(size=400, random_state=rng), 0.05) for _ in range(400)]
    false_alarms = distribution.sf(np.array(draws))
    error = false_alarms.std() / math.sqrt(len(false_alarms))
    # Split conformal prediction guarantees at most the wanted rate, and at least that minus 1 / (n + 1).
    assert 0.05 - 1 / 401 - 4 * error < false_alarms.mean() < 0.05 + 4 * error


@settings(deadline=None)
@given(SCORES, RATES, RATES)
def test_fewer_false_alarms_never_lower_it(scores: np.ndarray, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert threshold(scores, low) >= threshold(scores, high)


def test_fewer_false_alarms_never_lower_it_where_order_statistics_end() -> None:
    """The Gaussian rule alone gives 1.6 here for 39 %, and the order statistic 10 for 40 %."""
    scores = np.array([1.0] * 13 + [10.0] * 12, np.float32)
    assert threshold(scores, 0.4) == threshold(scores, 0.39) == 10
    assert threshold(scores, 0.01) >= 10
    flat = np.array([1.0] + [5.0] * 13, np.float32)
    assert threshold(flat, 0.625) == threshold(flat, 0.75) == 5  # the exponential of a logarithm is rounded


@settings(deadline=None)
@given(SCORES, RATES, st.floats(0.125, 8, width=16))
def test_it_scales_with_the_scores(scores: np.ndarray, rate: float, factor: float) -> None:
    few = 0.01 if len(scores) * rate < 10 else rate  # extreme rates give the largest float
    assert threshold(scores * np.float32(factor), few) == pytest.approx(factor * threshold(scores, few), rel=1e-3)


@settings(deadline=None)
@given(SCORES, RATES)
def test_the_order_of_scores_does_not_matter(scores: np.ndarray, rate: float) -> None:
    assert threshold(scores[::-1].copy(), rate) == pytest.approx(threshold(scores, rate), rel=1e-4)


def test_an_order_statistic_is_one_of_the_scores() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 1000.0))
    assert threshold(scores, 0.05) == 950  # 49 of 999 lie above
    assert threshold(scores, 0.5) == 500


def test_fewer_images_give_a_higher_threshold() -> None:
    """The same mean and deviation of logarithms, from an increasing number of images."""
    thresholds = []
    for count in (2, 4, 8, 50):
        logs = np.tile([-1.0, 1.0], count // 2)
        thresholds.append(threshold(np.exp(logs / logs.std(ddof=1)), 0.01))
    assert thresholds == sorted(thresholds, reverse=True)


def test_near_copies_do_not_raise_it() -> None:
    """Images with a near-copy in the training set score too low: the lower half has no higher variance."""
    rng = np.random.default_rng(0)
    upper = np.exp(np.abs(rng.normal(0, 0.1, 15)))
    scores = np.concatenate([upper, [1.0], 1 / upper])
    copies = np.where(np.arange(31) >= 25, scores / 10, scores)
    assert threshold(copies, 0.01) == pytest.approx(threshold(scores, 0.01))
    # Where the lower half varies less, it makes the deviation more certain, and smaller.
    assert threshold(np.concatenate([upper, [1.0], upper**-0.5]), 0.01) < threshold(scores, 0.01)


@pytest.mark.parametrize("scores", [[0.0, 1e30], [1e-30, 1.0, 1e30], [0.0, 0.0]])
@pytest.mark.parametrize("rate", [1e-300, 1e-17, 1e-6, 0.5])
def test_it_is_always_finite(scores: list[float], rate: float) -> None:
    """The JSON of a model file cannot contain infinity and NaN."""
    assert math.isfinite(threshold(np.array(scores), rate))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_an_invalid_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold(np.array([1.0, 2.0]), rate)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 good images, not {count}"):
        threshold(np.ones(count), 0.01)


@pytest.mark.parametrize(("images", "rate"), [(2, 0.5), (12, 0.1), (31, 0.05), (99, 0.02), (100, 0.01), (5000, 0.01)])
def test_a_rate_is_supported_if_one_image_is_expected_above(images: int, rate: float) -> None:
    assert smallest_supported_rate(images) == rate
