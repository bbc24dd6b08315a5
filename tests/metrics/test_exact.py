from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label
from sklearn import metrics as sklearn

from metalad.metrics import (
    UndefinedMetric,
    aupro,
    auroc,
    auroc_up_to,
    average_precision,
    f1_max,
    pr_curve,
    pro_curve,
    roc_curve,
)
from tests.metrics.cases import Array, Image, images, pooled, ranked

LIMITS = st.floats(0.01, 1)
METRICS: list[Callable[[Array, Array], float]] = [
    auroc,
    auroc_up_to,
    average_precision,
    lambda scores, labels: f1_max(scores, labels)[0],
]


def mean_height(x: Array, y: Array, limit: float) -> float:
    """The mean of the polyline over [0, limit], by midpoints of its pieces; `y` may jump where `x` repeats."""
    grid = np.unique(np.concatenate([x[x < limit], [0.0, limit]]))
    return float(np.sum(np.diff(grid) * np.interp((grid[1:] + grid[:-1]) / 2, x, y)) / limit)


def swept_overlap(several: list[Image]) -> tuple[Array, Array]:
    """FPR and mean region overlap, by flagging all images anew at every distinct score."""
    regions = [(m, label(mask, connectivity=2)) for m, mask in several]
    normal = [(m, ~mask) for m, mask in several]
    fpr, overlap = [0.0], [0.0]
    for threshold in np.unique(pooled(several)[0])[::-1]:
        flagged = sum(int((m[good] >= threshold).sum()) for m, good in normal)
        fpr.append(flagged / sum(int(good.sum()) for _, good in normal))
        parts = [m[parts == part] >= threshold for m, parts in regions for part in range(1, parts.max() + 1)]
        overlap.append(float(np.mean([part.mean() for part in parts])))
    return np.array(fpr), np.array(overlap)


# ROC


@given(ranked())
def test_the_roc_curve_is_scikit_learns_with_every_distinct_score(case: tuple[Array, Array]) -> None:
    scores, labels = case
    curve = roc_curve(scores, labels)
    fpr, tpr, thresholds = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    assert curve.fpr == pytest.approx(fpr, abs=1e-12)
    assert curve.tpr == pytest.approx(tpr, abs=1e-12)
    assert np.array_equal(curve.thresholds, thresholds)


@given(ranked())
def test_auroc_is_scikit_learns(case: tuple[Array, Array]) -> None:
    scores, labels = case
    assert auroc(scores, labels) == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-9)


@given(ranked(), LIMITS)
def test_auroc_up_to_is_the_mean_height_of_scikit_learns_curve(case: tuple[Array, Array], limit: float) -> None:
    scores, labels = case
    fpr, tpr, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
    assert auroc_up_to(scores, labels, limit) == pytest.approx(mean_height(fpr, tpr, limit), abs=1e-9)


def test_the_true_positive_rate_is_interpolated_at_the_limit() -> None:
    scores, labels = np.array([3.0, 2.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False, False])
    # From (0, 0.5) straight to (2/3, 1): at 0.3 the height is 0.725.
    assert auroc_up_to(scores, labels, 0.3) == pytest.approx((0.5 + 0.725) / 2)


@given(ranked())
def test_without_a_limit_it_is_the_auroc(case: tuple[Array, Array]) -> None:
    assert auroc_up_to(*case, 1.0) == pytest.approx(auroc(*case), abs=1e-12)


@given(ranked())
def test_turning_scores_round_turns_the_auroc_round(case: tuple[Array, Array]) -> None:
    scores, labels = case
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


# Precision and recall


@given(ranked())
def test_average_precision_is_scikit_learns(case: tuple[Array, Array]) -> None:
    scores, labels = case
    assert average_precision(scores, labels) == pytest.approx(sklearn.average_precision_score(labels, scores), abs=1e-9)


@given(ranked())
def test_the_pr_curve_is_scikit_learns_turned_round_without_its_appended_point(case: tuple[Array, Array]) -> None:
    scores, labels = case
    curve = pr_curve(scores, labels)
    precision, recall, thresholds = sklearn.precision_recall_curve(labels, scores)
    assert curve.precision == pytest.approx(precision[-2::-1], abs=1e-12)
    assert curve.recall == pytest.approx(recall[-2::-1], abs=1e-12)
    assert np.array_equal(curve.thresholds, thresholds[::-1])


@settings(max_examples=40, deadline=None)
@given(ranked())
def test_no_threshold_has_a_higher_f1_than_the_one_returned(case: tuple[Array, Array]) -> None:
    scores, labels = case
    highest, threshold = f1_max(scores, labels)
    assert highest == pytest.approx(sklearn.f1_score(labels, scores >= threshold), abs=1e-12)
    assert highest == pytest.approx(max(sklearn.f1_score(labels, scores >= one) for one in scores), abs=1e-12)


# All


@pytest.mark.parametrize("positives", [1, 3, 99_999])
def test_extreme_imbalance_with_ties(positives: int) -> None:
    rng = np.random.default_rng(positives)
    scores = rng.integers(0, 500, 100_000).astype(np.float32)
    labels = np.arange(100_000) < positives
    assert auroc(scores, labels) == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-9)
    assert average_precision(scores, labels) == pytest.approx(sklearn.average_precision_score(labels, scores), abs=1e-9)


@given(st.integers(1, 50), st.integers(1, 50), LIMITS)
def test_constant_scores_are_chance(positives: int, negatives: int, limit: float) -> None:
    labels = np.arange(positives + negatives) < positives
    scores = np.full(len(labels), 0.25, np.float32)
    assert auroc(scores, labels) == 0.5
    assert auroc_up_to(scores, labels, limit) == pytest.approx(limit / 2)
    assert average_precision(scores, labels) == pytest.approx(labels.mean())


def test_random_scores_are_chance() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(200_000), rng.random(200_000) < 0.1
    assert auroc_up_to(scores, labels, 0.3) == pytest.approx(0.15, abs=0.005)


@given(st.integers(1, 50), st.integers(1, 50), LIMITS)
def test_perfect_scores_are_one_and_the_worst_zero(positives: int, negatives: int, limit: float) -> None:
    labels = np.arange(positives + negatives) < positives
    scores = labels.astype(np.float64)
    assert [metric(scores, labels) for metric in METRICS] == [pytest.approx(1)] * len(METRICS)
    assert auroc_up_to(scores, labels, limit) == pytest.approx(1)
    assert auroc(-scores, labels) == pytest.approx(0)


@given(ranked(), st.data())
def test_only_the_order_of_scores_counts(case: tuple[Array, Array], data: st.DataObject) -> None:
    scores, labels = case
    values, ranks = np.unique(scores, return_inverse=True)
    increasing = data.draw(
        st.lists(st.floats(-1e300, 1e300), min_size=len(values), max_size=len(values), unique=True).map(sorted)
    )
    mapped = np.array(increasing)[ranks]
    for metric in METRICS:
        assert metric(mapped, labels) == metric(scores, labels)


@given(ranked(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_count(case: tuple[Array, Array], random: st.DataObject) -> None:
    order = list(range(len(case[0])))
    random.shuffle(order)  # type: ignore[attr-defined]
    for metric in METRICS:
        assert metric(case[0][order], case[1][order]) == metric(*case)


@pytest.mark.parametrize("metric", [auroc, auroc_up_to, roc_curve, average_precision, f1_max])
def test_one_class_alone_is_undefined(metric: Callable[[Array, Array], object]) -> None:
    with pytest.raises(UndefinedMetric, match="nothing abnormal"):
        metric(np.array([1.0, 2.0]), np.array([False, False]))
    with pytest.raises(UndefinedMetric, match="nothing"):
        metric(np.zeros(0), np.zeros(0, bool))


@pytest.mark.parametrize("metric", [auroc, auroc_up_to, roc_curve])
def test_a_false_positive_rate_needs_something_normal(metric: Callable[[Array, Array], object]) -> None:
    with pytest.raises(UndefinedMetric, match="nothing normal"):
        metric(np.array([1.0, 2.0]), np.array([True, True]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_cannot_be_ranked_is_refused(metric: Callable[[Array, Array], float], bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        metric(np.array([1.0, bad]), np.array([True, False]))


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, np.nan])
def test_a_limit_outside_the_curve_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="false-positive rate"):
        auroc_up_to(np.array([1.0, 2.0]), np.array([False, True]), limit)


# Region overlap


@settings(deadline=None)
@given(images(), LIMITS)
def test_aupro_is_what_a_sweep_over_all_thresholds_finds(several: list[Image], limit: float) -> None:
    maps, masks = zip(*several, strict=True)
    fpr, overlap = swept_overlap(several)
    curve = pro_curve(maps, masks)
    assert curve.fpr == pytest.approx(fpr, abs=1e-9)
    assert curve.pro == pytest.approx(overlap, abs=1e-9)
    assert aupro(maps, masks, limit) == pytest.approx(mean_height(fpr, overlap, limit), abs=1e-9)


def test_a_small_region_counts_as_much_as_a_large_one() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10, :10] = mask[15, 15] = True
    found_small, found_large = np.zeros((20, 20)), np.zeros((20, 20))
    found_small[15, 15] = 1
    found_large[:10, :10] = 1
    # Half the regions at once, the other half in proportion to the false positives.
    assert aupro([found_small], [mask]) == aupro([found_large], [mask]) == pytest.approx(0.5 + 0.5 * 0.15)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[1, 1] = mask[2, 2] = mask[5, 5] = True
    anomaly_map = np.zeros((6, 6))
    anomaly_map[5, 5] = 1
    assert pro_curve([anomaly_map], [mask]).pro[1] == pytest.approx(1 / 2)


def test_good_images_only_lower_the_false_positive_rate() -> None:
    mask, nothing = np.eye(4, dtype=bool), np.zeros((9, 9), dtype=bool)
    anomaly_map, quiet = np.random.default_rng(0).random((4, 4)), np.full((9, 9), -1.0)
    alone, together = pro_curve([anomaly_map], [mask]), pro_curve([anomaly_map, quiet], [mask, nothing])
    assert together.fpr[:-1] == pytest.approx(alone.fpr * 12 / (12 + 81))


@pytest.mark.parametrize("constant", [0.0, -3.5])
def test_a_flat_map_has_the_overlap_of_chance(constant: float) -> None:
    assert aupro([np.full((8, 8), constant)], [np.eye(8, dtype=bool)], 0.3) == pytest.approx(0.15)


def test_the_mask_itself_is_a_perfect_map() -> None:
    mask = np.random.default_rng(0).random((30, 30)) < 0.2
    assert aupro([mask.astype(np.float32)], [mask]) == pytest.approx(1)


def test_without_regions_or_without_normal_pixels_overlap_is_undefined() -> None:
    with pytest.raises(UndefinedMetric, match="abnormal"):
        aupro([np.zeros((3, 3))], [np.zeros((3, 3), bool)])
    with pytest.raises(UndefinedMetric, match="normal"):
        aupro([np.zeros((3, 3))], [np.ones((3, 3), bool)])
    with pytest.raises(UndefinedMetric, match="no map"):
        aupro([], [])


def test_a_map_that_does_not_fit_its_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        aupro([np.zeros((2, 3))], [np.zeros((3, 2), bool)])
