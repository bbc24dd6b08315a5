"""Thresholds that separate the test images: against an exhaustive search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalad.results.evaluation import Evaluation, MeasuredImage
from metalad.results.report import Report
from metalad.results.report_text import report_table
from metalad.results.separation import separation

IMAGES = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=12)


@given(IMAGES)
def test_no_threshold_has_a_higher_balanced_accuracy(images: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([score for score, _ in images], np.float32), np.array([label for _, label in images])
    found = separation(scores, labels)
    if labels.all() or not labels.any():
        assert found is None
        return
    assert found is not None
    accuracies = [((scores[labels] > t).mean() + (scores[~labels] <= t).mean()) / 2 for t in np.arange(-0.5, 9)]
    assert found.balanced_accuracy == pytest.approx(max(accuracies))
    assert found.found == (scores[labels] > found.threshold).sum()
    assert found.rejected == (scores[~labels] > found.threshold).sum()
    assert (found.found / labels.sum() + 1 - found.rejected / (~labels).sum()) / 2 == pytest.approx(max(accuracies))
    assert found.is_perfect == (max(accuracies) == 1)


def test_scores_that_can_be_separated_give_both_bounds() -> None:
    found = separation(np.array([0.5, 0.963, 1.097, 1.4]), np.array([False, False, True, True]))
    assert found is not None
    assert (found.highest_good, found.lowest_anomalous) == (0.963, 1.097)
    assert found.threshold == pytest.approx((0.963 * 1.097) ** 0.5)
    assert found.text() == (
        "chosen on these test images: a threshold between 0.963 and 1.097 separates all good from all anomalous ones"
    )


def test_scores_that_cannot_be_separated_give_the_best_threshold() -> None:
    found = separation(np.array([1.0, 1, 1, 3, 2, 4, 4, 4, 4, 4]), np.arange(10) >= 4)
    assert found is not None
    assert not found.is_perfect
    assert found.text() == (
        "chosen on these test images: no threshold separates all; 3.464 has the best balanced accuracy, 91.7 % "
        "(5 of 6 anomalous found, 0 of 4 good rejected)"
    )


def test_bounds_are_printed_with_as_many_digits_as_they_need() -> None:
    found = separation(np.array([0.99999991, 0.99999997]), np.array([False, True]))
    assert found is not None
    assert "between 0.9999999 and 1 separates" in found.text()
    assert found.highest_good <= found.threshold < found.lowest_anomalous


def test_scores_that_are_not_finite_have_no_separation() -> None:
    assert separation(np.array([np.nan, 1.0]), np.array([False, True])) is None


def test_a_report_holds_it_prints_it_and_reads_it_back() -> None:
    evaluation = Evaluation(("raw",))
    for defect, score in (("good", 0.5), ("good", 0.963), ("bent", 1.097), ("bent", 1.4)):
        evaluation.add(MeasuredImage(defect, defect != "good", {"raw": score}, {}, -1))
    report = Report("plates", "stub", "run", (8, 8), 1.0, (evaluation.report("raw", 1.262, 0.01),), ())
    found = report.chosen.separation
    assert found is not None
    assert found.is_perfect
    assert found.text() in report_table(report)
    assert report.flat()["separation"]["highest_good"] == pytest.approx(0.963)
    assert Report.from_json(report.to_json()).chosen.separation == found
