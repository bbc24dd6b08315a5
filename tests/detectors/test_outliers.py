import math

import numpy as np
import pytest

from metalad.detectors.outliers import ENOUGH_IMAGES, MAX_RATIO, MIN_IMAGES, standing_out, useless_threshold


@pytest.mark.parametrize("count", [20, 40, 200])
@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_gaussian_logarithms_hardly_ever_name_an_image(count: int, deviation: float) -> None:
    rng = np.random.default_rng(0)
    named = [standing_out(np.exp(deviation * rng.standard_normal(count))) for _ in range(300)]
    # Few images leave the quartiles uncertain: more than the nominal 1 % of the sets have a named image.
    assert np.mean([len(each) > 0 for each in named]) <= (0.2 if count == 20 else 0.12)
    assert np.mean([len(each) for each in named]) <= 0.5


def test_three_of_forty_images_with_high_scores_are_named_the_highest_first() -> None:
    scores = np.exp(0.4 * np.random.default_rng(1).standard_normal(40))
    scores[[3, 17, 30]] = [9.0, 30.0, 12.0]
    assert standing_out(scores) == [17, 30, 3]
    assert standing_out(1000 * scores) == [17, 30, 3]


def test_near_copies_with_low_scores_do_not_hide_an_image() -> None:
    scores = np.exp(0.2 * np.random.default_rng(2).standard_normal(100))
    scores[:30] = 1e-4
    scores[50] = 8.0
    assert standing_out(scores) == [50]


def test_almost_equal_scores_and_few_images_name_nothing() -> None:
    scores = 1 + 1e-6 * np.arange(40)
    scores[0] = 1.9
    assert standing_out(scores) == []
    scores[0] = 2.1
    assert standing_out(scores) == [0]
    assert standing_out(np.array([1.0] * (MIN_IMAGES - 2) + [1e6])) == []


def test_a_threshold_is_useless_if_it_is_not_finite_about_zero_or_far_above_all_scores() -> None:
    scores = np.linspace(1, 2, ENOUGH_IMAGES)
    assert useless_threshold(1.5 * MAX_RATIO, scores) is None
    assert useless_threshold(3.0, scores) is None
    assert "more than 10,000 times the median" in str(useless_threshold(1.6 * MAX_RATIO, scores))
    assert useless_threshold(1e11, scores[:4]) is None  # too few images, which is another warning
    assert "about 0" in str(useless_threshold(1e-38, scores))
    for bad in (math.nan, math.inf):
        assert "not finite" in str(useless_threshold(bad, scores))
        assert "not finite" in str(useless_threshold(3.0, np.array([1.0, bad])))
