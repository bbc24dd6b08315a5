"""Exact metrics: agreement with scikit-learn and with slow implementations, invariance, and invalid input."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jaxtyping import config
from sklearn import metrics as sklearn_metrics

from metalad.results.metrics import (
    MAX_FPR,
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

Images = list[tuple[np.ndarray, np.ndarray]]

CLOSE = 1e-9
AWKWARD = [0.0, -0.0, 1.0, -1.0, float(np.nextafter(np.float32(1), np.float32(2))), 1e-45, -1e-45, 1e-38, 3e38, -3e38]
DOUBLES = [5e-324, -5e-324, 1.7e308, -1.7e308, 1 + 2**-52]
RATES = st.floats(1e-4, 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Generate scores with many ties, and both labels, often one of them only once."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    width: Literal[32, 64] = 32 if dtype is np.float32 else 64
    some = AWKWARD if width == 32 else AWKWARD + DOUBLES
    kinds = [st.sampled_from(some), st.integers(-3, 3).map(float), st.just(0.5), st.floats(-1, 1, width=width)]
    elements = draw(st.sampled_from([*kinds, st.floats(allow_nan=False, allow_infinity=False, width=width)]))
    size = draw(st.integers(2, 40))
    scores = draw(arrays.arrays(dtype, size, elements=elements))
    labels = draw(arrays.arrays(bool, size, elements=st.one_of(st.just(True), st.just(False), st.booleans())))
    labels[0], labels[1] = True, False
    shuffled = np.array(draw(st.permutations(range(size))))
    return scores[shuffled], labels[shuffled]


@st.composite
def annotated_images(draw: st.DrawFn) -> Images:
    """Generate small images of different sizes, with at least one region and one defect-free pixel."""
    images = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
        anomaly_map = draw(arrays.arrays(np.float32, size, elements=st.integers(-3, 6).map(float)))
        images.append((anomaly_map, draw(arrays.arrays(bool, size, elements=st.integers(0, 2).map(lambda n: n == 0)))))
    images[0][1].flat[:2] = True, False
    return images


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Disable the checks of shapes and types, as outside the tests."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def integral(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Integrate a polyline from 0 to `limit`, piece by piece."""
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(zip(x.tolist(), y.tolist(), strict=True)):
        if x1 > x0 and x0 < limit:
            end = min(x1, limit)
            slope = (y1 - y0) / (x1 - x0)
            total += (end - x0) * (y0 + slope * (end - x0) / 2)
    return total


# Against scikit-learn


@settings(deadline=None, max_examples=25)
@given(cases())
def test_areas_equal_those_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    with np.errstate(over="ignore", invalid="ignore"):  # scikit-learn subtracts neighboring scores
        area = sklearn_metrics.roc_auc_score(labels, scores)
        precision = sklearn_metrics.average_precision_score(labels, scores)
    assert auroc(scores, labels) == pytest.approx(area, abs=CLOSE)
    assert average_precision(scores, labels) == pytest.approx(precision, abs=CLOSE)


@settings(deadline=None, max_examples=25)
@given(cases())
def test_curves_equal_those_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    with np.errstate(over="ignore", invalid="ignore"):
        fpr, tpr, thresholds = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
        precision, recall, levels = sklearn_metrics.precision_recall_curve(labels, scores)
    roc, pr = roc_curve(scores, labels), pr_curve(scores, labels)
    np.testing.assert_allclose(roc.fpr, fpr, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(roc.tpr, tpr, rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(roc.thresholds, thresholds)
    np.testing.assert_allclose(pr.precision[::-1], precision[:-1], rtol=0, atol=CLOSE)
    np.testing.assert_allclose(pr.recall[::-1], recall[:-1], rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(pr.thresholds[::-1], levels)


@settings(deadline=None, max_examples=25)
@given(cases(), RATES)
def test_the_partial_area_is_that_under_the_curve_of_scikit_learn(
    case: tuple[np.ndarray, np.ndarray], limit: float
) -> None:
    scores, labels = case
    with np.errstate(over="ignore", invalid="ignore"):
        fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    for rate in (limit, MAX_FPR, float(fpr[fpr > 0][0])):
        assert auroc_up_to(scores, labels, rate) == pytest.approx(integral(fpr, tpr, rate) / rate, abs=CLOSE)


@settings(deadline=None, max_examples=25)
@given(cases())
def test_no_threshold_has_a_higher_f1(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    value, threshold = f1_max(scores, labels)
    every = [sklearn_metrics.f1_score(labels, scores >= level) for level in np.unique(scores)]
    assert value == pytest.approx(max(every), abs=CLOSE)
    assert sklearn_metrics.f1_score(labels, scores >= threshold) == pytest.approx(value, abs=CLOSE)
    assert threshold in scores


@pytest.mark.parametrize("positives", [1, 19_999])
def test_extreme_imbalance(positives: int) -> None:
    rng = np.random.default_rng(positives)
    scores = rng.normal(size=20_000).astype(np.float32)
    labels = np.arange(20_000) < positives
    area = sklearn_metrics.roc_auc_score(labels, scores)
    assert auroc(scores, labels) == pytest.approx(area, abs=CLOSE)
    precision = sklearn_metrics.average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(precision, abs=CLOSE)


# The partial area


@settings(deadline=None, max_examples=25)
@given(cases(), RATES)
def test_perfect_scores_give_1_and_inverted_ones_0(case: tuple[np.ndarray, np.ndarray], limit: float) -> None:
    labels = case[1]
    scores = labels.astype(np.float64)
    assert auroc(scores, labels) == auroc_up_to(scores, labels, 1.0) == 1
    assert auroc_up_to(scores, labels, limit) == pytest.approx(1, abs=1e-12)
    assert average_precision(scores, labels) == 1
    assert f1_max(scores, labels) == (1, 1)
    assert auroc(-scores, labels) == 0
    assert auroc_up_to(-scores, labels, limit) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_random_scores_give_half_the_limit(limit: float) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(100_000), rng.random(100_000) < 0.1
    assert auroc_up_to(scores, labels, limit) == pytest.approx(limit / 2, abs=0.01)
    # One score for all gives the diagonal exactly.
    assert auroc_up_to(np.zeros(100_000), labels, limit) == pytest.approx(limit / 2, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(cases(), st.floats(0.01, 0.99))
def test_the_partial_area_of_mcclish_is_a_rescaled_one(case: tuple[np.ndarray, np.ndarray], limit: float) -> None:
    scores, labels = case
    with np.errstate(over="ignore", invalid="ignore"):
        mcclish = sklearn_metrics.roc_auc_score(labels, scores, max_fpr=limit)
    ours = auroc_up_to(scores, labels, limit)
    assert mcclish == pytest.approx((1 + (ours - limit / 2) / (1 - limit / 2)) / 2, abs=CLOSE)
    assert ours < mcclish or ours == pytest.approx(1, abs=CLOSE)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, math.nan])
def test_an_invalid_limit_is_refused(limit: float) -> None:
    scores, labels = np.array([0.0, 1.0]), np.array([False, True])
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        auroc_up_to(scores, labels, limit)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        aupro([scores[None]], [labels[None]], limit)


# Invariance


@pytest.mark.parametrize(
    "rising",
    [np.exp, np.arctan, lambda x: x**3, lambda x: -1 / (x + 30), lambda x: 5e-324 * x, lambda x: 1e306 * x - 1e307],
    ids=["exp", "arctan", "cube", "reciprocal", "denormal", "huge"],
)
@settings(deadline=None, max_examples=10)
@given(arrays.arrays(np.float64, 30, elements=st.integers(-20, 20).map(float)), arrays.arrays(bool, 28))
def test_metrics_depend_only_on_the_order_of_scores(
    rising: Callable[[np.ndarray], np.ndarray], scores: np.ndarray, some: np.ndarray
) -> None:
    labels = np.append(some, [True, False])
    mapped = rising(scores)
    assert auroc(mapped, labels) == auroc(scores, labels)
    assert auroc_up_to(mapped, labels) == auroc_up_to(scores, labels)
    assert average_precision(mapped, labels) == average_precision(scores, labels)
    assert f1_max(mapped, labels)[0] == f1_max(scores, labels)[0]
    pixels, mask = scores.reshape(5, 6), labels.reshape(5, 6)
    assert aupro([mapped.reshape(5, 6)], [mask]) == aupro([pixels], [mask])


@settings(deadline=None, max_examples=25)
@given(cases())
def test_negating_scores_and_labels_changes_nothing(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    assert auroc(-scores, ~labels) == pytest.approx(auroc(scores, labels), abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


# Per-region overlap


def regions_of(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Return the 8-connected regions, found pixel by pixel."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    regions = []
    while left:
        region, front = set(), [left.pop()]
        while front:
            row, column = front.pop()
            region.add((row, column))
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            front.extend(near)
        regions.append(region)
    return regions


def slow_pro(images: Images) -> tuple[list[float], list[float]]:
    """Return the curve for all distinct values as thresholds, counted region by region."""
    levels = sorted({float(value) for anomaly_map, _ in images for value in anomaly_map.flat}, reverse=True)
    negatives = sum(int((~mask).sum()) for _, mask in images)
    rates, overlaps = [0.0], [0.0]
    for level in levels:
        false, parts = 0, []
        for anomaly_map, mask in images:
            false += int((~mask & (anomaly_map >= level)).sum())
            for region in regions_of(mask):
                parts.append(sum(bool(anomaly_map[pixel] >= level) for pixel in region) / len(region))
        rates.append(false / negatives)
        overlaps.append(sum(parts) / len(parts))
    return rates, overlaps


@settings(deadline=None, max_examples=20)
@given(annotated_images(), RATES)
def test_overlap_equals_that_of_a_slow_implementation(images: Images, limit: float) -> None:
    maps, masks = [image[0] for image in images], [image[1] for image in images]
    rates, overlaps = slow_pro(images)
    curve = pro_curve(maps, masks)
    np.testing.assert_allclose(curve.fpr, rates, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(curve.pro, overlaps, rtol=0, atol=CLOSE)
    for rate in (limit, MAX_FPR, 1.0):
        slow = integral(np.array(rates), np.array(overlaps), rate) / rate
        assert aupro(maps, masks, rate) == pytest.approx(slow, abs=CLOSE)


def test_a_small_region_counts_as_much_as_a_large_one() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:5, :5] = True
    mask[7, 7] = True
    only_large = np.where(mask, 1.0, 0.5)
    only_large[7, 7] = 0.0
    assert pro_curve([only_large], [mask]).pro.tolist() == [0, 0.5, 0.5, 1]
    assert roc_curve(only_large.ravel(), mask.ravel()).tpr[1] == 25 / 26
    # Pixels that touch at a corner are one region; it has 28 pixels now.
    mask[5, 5] = mask[6, 6] = True
    assert pro_curve([np.where(mask, only_large, 0.5)], [mask]).pro[1] == pytest.approx(25 / 28)


# Undefined metrics and invalid input


@pytest.mark.parametrize("truth", [True, False])
def test_metrics_with_one_label_are_undefined(truth: bool) -> None:
    scores, labels = np.array([0.5, 1.0, 2.0]), np.full(3, truth)
    for metric in (auroc, auroc_up_to, roc_curve, average_precision, f1_max, pr_curve):
        with pytest.raises(UndefinedMetric, match="nothing normal" if truth else "nothing abnormal"):
            metric(scores, labels)
    for overlap in (aupro, pro_curve):
        with pytest.raises(UndefinedMetric, match="nothing normal" if truth else "nothing abnormal"):
            overlap([scores[None]], [labels[None]])


def test_metrics_without_scores_are_undefined() -> None:
    for metric in (auroc, auroc_up_to, average_precision, f1_max, roc_curve, pr_curve):
        with pytest.raises(UndefinedMetric):
            metric(np.zeros(0), np.zeros(0, bool))
    with pytest.raises(UndefinedMetric):
        aupro([], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores, labels = np.array([0.5, bad, 1.0]), np.array([True, False, True])
    for metric in (auroc, auroc_up_to, average_precision, f1_max, roc_curve, pr_curve):
        with pytest.raises(ValueError, match="must be finite"):
            metric(scores, labels)
    with pytest.raises(ValueError, match="must be finite"):
        aupro([scores[None]], [labels[None]])


@pytest.mark.usefixtures("unchecked")
def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        auroc(np.zeros(3), np.zeros(4, bool))
    with pytest.raises(ValueError, match="must have one size"):
        aupro([np.zeros((3, 4))], [np.zeros((4, 3), bool)])
    with pytest.raises(ValueError, match="shorter"):
        aupro([np.zeros((3, 4))] * 2, [np.zeros((3, 4), bool)])
