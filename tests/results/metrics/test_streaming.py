"""Streaming pixel metrics: agreement with the exact ones, their error bound, order, merging and memory."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jaxtyping import config
from scipy import ndimage

from metalad.results.metrics import (
    PixelMetrics,
    UndefinedMetric,
    aupro,
    auroc,
    auroc_up_to,
    average_precision,
    f1_max,
    pro_curve,
    roc_curve,
    streaming,
)
from metalad.results.metrics.streaming import BINS, CURVE_POINTS

Image = tuple[np.ndarray, np.ndarray]

CLOSE = 1e-4
SIZE = (5, 7)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
HUGE_RANGE = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-30, 1e30, -1e30, 1e-45, 3.4e38, -3.4e38]),
    st.integers(-30, 30).map(lambda n: 10.0**n),
)
NEAR_TIES = st.integers(0, 40).map(lambda steps: float(np.float32(1) + steps * np.float32(2**-23)))
KINDS = [FINITE, HUGE_RANGE, NEAR_TIES, st.floats(-1, 1, width=32), st.just(0.25)]


@st.composite
def images(draw: st.DrawFn, kinds: Sequence[st.SearchStrategy[float]] = tuple(KINDS)) -> list[Image]:
    """Generate a few small images, each with scores of one kind, the first with pixels of both labels."""
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        elements = draw(st.sampled_from(list(kinds))).map(np.float32)
        anomaly_map = draw(arrays.arrays(np.float32, SIZE, elements=elements))
        drawn.append((anomaly_map, draw(arrays.arrays(bool, SIZE, elements=st.integers(0, 2).map(lambda n: n == 0)))))
    drawn[0][1].flat[:2] = True, False
    return drawn


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Disable the checks of shapes and types, as outside the tests."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def counted(some: Sequence[Image]) -> PixelMetrics:
    pixels = PixelMetrics()
    for anomaly_map, mask in some:
        pixels.add(anomaly_map, mask)
    return pixels


def pooled(some: Sequence[Image]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.concatenate([image[part].ravel() for image in some]) for part in (0, 1))  # type: ignore[return-value]


def smooth_images(seed: int, scale: float = 1.0, offset: float = 0.0) -> list[Image]:
    """Return maps like those of a detector: smooth, over many octaves, higher at most defects."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(4):
        smooth = ndimage.gaussian_filter(rng.normal(size=(150, 130)), 5) * 12
        mask = (
            ndimage.gaussian_filter(rng.normal(size=smooth.shape), 6) * 15 > 1.8
            if number
            else np.zeros(smooth.shape, bool)
        )
        anomaly_map = offset + scale * np.exp(smooth + 1.5 * ndimage.gaussian_filter(mask.astype(float), 4))
        made.append((anomaly_map.astype(np.float32), mask))
    return made


def check(some: Sequence[Image], tolerance: float) -> None:
    """Compare every streaming metric with the exact one."""
    pixels, (scores, labels) = counted(some), pooled(some)
    maps, masks = [image[0] for image in some], [image[1] for image in some]
    assert pixels.auroc() == pytest.approx(auroc(scores, labels), abs=tolerance)
    assert pixels.average_precision() == pytest.approx(average_precision(scores, labels), abs=tolerance)
    assert pixels.f1_max()[0] == pytest.approx(f1_max(scores, labels)[0], abs=tolerance)
    for limit in (0.05, 0.3, 1.0):
        assert pixels.auroc_up_to(limit) == pytest.approx(auroc_up_to(scores, labels, limit), abs=tolerance)
        assert pixels.aupro(limit) == pytest.approx(aupro(maps, masks, limit), abs=tolerance)


def same(one: PixelMetrics, other: PixelMetrics) -> None:
    """Compare the counts of two: all bits, except for the weights of regions, whose sums are rounded."""
    ours, theirs = one._totals(), other._totals()
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(ours.positives, theirs.positives)
    np.testing.assert_array_equal(ours.negatives, theirs.negatives)
    np.testing.assert_allclose(ours.overlaps, theirs.overlaps, rtol=1e-12, atol=0)


def held(pixels: PixelMetrics) -> int:
    """Return the bytes of all its arrays."""
    pending = [array for arrays_ in pixels._pending for array in arrays_]
    own = [value for value in vars(pixels).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in own + pending)


@contextlib.contextmanager
def few_bins(bins: int) -> Iterator[None]:
    """Reduce the number of bins so that small images fill them; results must be read inside, too."""
    with mock.patch.object(streaming, "BINS", bins), mock.patch.object(streaming, "PENDING", 2 * bins):
        yield


# Against the exact metrics


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1, 0), (1e-6, 0), (1e30, 0), (1e-30, 0), (-1, 0), (1, -1), (1e-3, 1), (1e-5, 1000)],
    ids=["plain", "small", "huge", "tiny", "negative", "both signs", "narrow", "a few hundred numbers"],
)
def test_metrics_of_smooth_maps_are_close_to_the_exact_ones(scale: float, offset: float) -> None:
    some = smooth_images(1, scale, offset)
    assert 0.6 < auroc(*pooled(some)) < 0.95 or scale < 0
    check(some, CLOSE)


@pytest.mark.parametrize("outlier", [0.0, -1.0, 1e30])
def test_outliers_do_not_increase_the_error(outlier: float) -> None:
    some = smooth_images(2)
    some[0][0][3, 3] = outlier
    some[1][0][5, 5] = 0
    check(some, CLOSE)


@pytest.mark.parametrize("bins", [8, BINS])
@settings(deadline=None, max_examples=12)
@given(images())
def test_the_error_never_exceeds_its_bound(bins: int, some: list[Image]) -> None:
    with few_bins(bins):
        pixels, (scores, labels) = counted(some), pooled(some)
        assert abs(pixels.auroc() - auroc(scores, labels)) <= pixels.error_bound() + 1e-12
        assert 0 <= pixels.error_bound() <= 0.5


@settings(deadline=None, max_examples=12)
@given(images())
def test_metrics_of_few_distinct_scores_are_exact(some: list[Image]) -> None:
    """Each bin contains one number, also if the numbers are adjacent in float32 or 60 powers of ten apart."""
    check(some, 1e-12)
    pixels = counted(some)
    assert pixels.f1_max() == pytest.approx(f1_max(*pooled(some)), rel=1e-12)
    assert pixels.error_bound() == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_error_bound_is_large_if_all_scores_share_few_bins(sign: int) -> None:
    steps = np.arange(100, dtype=np.float32).reshape(10, 10) * np.float32(2**-22)
    anomaly_map = (sign * (1 + steps)).astype(np.float32)
    mask = anomaly_map > np.median(anomaly_map)
    some = [(anomaly_map * np.float32(scale), mask) for scale in (1, 1e6, 1e-6)]
    with few_bins(3):
        pixels = counted(some)
        assert 0.1 < abs(pixels.auroc() - auroc(*pooled(some))) <= pixels.error_bound() <= 0.5


def test_negative_zero_equals_zero() -> None:
    anomaly_map = np.array([[0.0, -0.0, 0.0, -0.0]], np.float32)
    assert counted([(anomaly_map, np.array([[True, False, False, True]]))]).auroc() == 0.5


def test_the_threshold_is_exact_up_to_a_bin() -> None:
    some = smooth_images(3)
    assert counted(some).f1_max()[1] == pytest.approx(f1_max(*pooled(some))[1], rel=1e-3)


# Order, grouping and memory layout


@pytest.mark.parametrize("bins", [8, BINS])
@settings(deadline=None, max_examples=12)
@given(images(), st.randoms(use_true_random=False), st.integers(0, 4))
def test_order_and_grouping_do_not_matter(bins: int, some: list[Image], random: Random, split: int) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    with few_bins(bins):
        everything = counted(some)
        same(counted(shuffled), everything)
        first, second = counted(shuffled[:split]), counted(shuffled[split:])
        first.merge(second)
        same(first, everything)
        if second._counts.size:
            same(second, counted(shuffled[split:]))
    assert first.auroc() == everything.auroc()
    assert first.aupro() == pytest.approx(everything.aupro(), abs=1e-12)


def test_merging_with_itself_doubles_all_counts() -> None:
    some = smooth_images(4)
    pixels = counted(some)
    pixels.merge(pixels)
    same(pixels, counted([*some, *some]))


@pytest.mark.parametrize("bins", [8, BINS])
def test_every_pixel_and_region_is_counted_once(bins: int) -> None:
    some = smooth_images(5)
    with few_bins(bins):
        totals = counted(some)._totals()
    regions = sum(ndimage.label(mask, np.ones((3, 3)))[1] for _, mask in some)
    assert totals.positives.sum() == sum(int(mask.sum()) for _, mask in some)
    assert totals.negatives.sum() == sum(int((~mask).sum()) for _, mask in some)
    assert totals.overlaps.sum() == pytest.approx(regions, rel=1e-12)


def test_memory_does_not_grow_with_pixels() -> None:
    some = smooth_images(10)
    pixels = PixelMetrics()
    with few_bins(1000):
        for number in range(5):
            for anomaly_map, mask in some:
                pixels.add(anomaly_map + np.float32(0.1 * number), mask)
            assert held(pixels) <= 4 * 8 * (1000 + 2000)  # bins, and pending ones


@pytest.mark.parametrize(
    "strided", [np.asfortranarray, lambda array: np.repeat(array, 2, 1)[:, ::2]], ids=["F", "step"]
)
def test_the_arrays_memory_layout_does_not_matter(strided: Callable[[np.ndarray], np.ndarray]) -> None:
    some = smooth_images(6)
    same(counted([(strided(anomaly_map), strided(mask)) for anomaly_map, mask in some]), counted(some))


# Deferred inclusion


def immediate(some: Sequence[Image]) -> PixelMetrics:
    """Count images with every one included at once, as if nothing were deferred."""
    with mock.patch.object(streaming, "PENDING", 0):
        pixels = counted(some)
        assert pixels._pending == []
    return pixels


def measured(pixels: PixelMetrics) -> list[float]:
    """All metrics of one object; each may include what is pending."""
    return [
        pixels.auroc(),
        pixels.auroc_up_to(0.3),
        pixels.aupro(0.3),
        pixels.average_precision(),
        *pixels.f1_max(),
        pixels.error_bound(),
    ]


@pytest.mark.parametrize("bins", [8, BINS])
@pytest.mark.parametrize("pending", [0, 1, 40, 10**9])
@settings(deadline=None, max_examples=12)
@given(images(), st.data())
def test_deferred_inclusion_gives_the_numbers_of_immediate_inclusion(
    bins: int, pending: int, some: list[Image], data: st.DataObject
) -> None:
    """In any order, in any grouping of merges, and with metrics computed in between."""
    with few_bins(bins):
        expected = immediate(some)
        with mock.patch.object(streaming, "PENDING", pending):
            groups = [PixelMetrics() for _ in range(3)]
            for image in data.draw(st.permutations(some)):
                group = groups[data.draw(st.integers(0, 2))]
                group.add(*image)
                if data.draw(st.booleans()):
                    group._totals()
            first, second, third = data.draw(st.permutations(groups))
            if data.draw(st.booleans()):
                first.merge(second)
                first.merge(third)
            else:
                second.merge(third)
                first.merge(second)
            found = measured(first)
        same(first, expected)
        assert found == pytest.approx(measured(expected), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("pending", [0, 1000, 10**9])
def test_smooth_maps_give_the_same_numbers_deferred_and_merged(pending: int) -> None:
    some = smooth_images(11)
    with few_bins(1000):
        expected = immediate(some)
        assert expected._shift > 0
        with mock.patch.object(streaming, "PENDING", pending):
            together, halves = counted(some), [counted(some[:1]), counted(some[1:])]
            halves[1].merge(halves[0])
            for pixels in (together, halves[1]):
                assert measured(pixels) == pytest.approx(measured(expected), rel=1e-12, nan_ok=True)
                same(pixels, expected)


def test_a_merged_object_keeps_its_own_counts() -> None:
    some = smooth_images(12)
    first, second = counted(some[:2]), counted(some[2:])
    first.merge(second)
    first.add(*some[0])
    same(second, counted(some[2:]))
    same(first, counted([*some, some[0]]))


def test_pending_bins_are_limited() -> None:
    some = smooth_images(13)
    pixels = PixelMetrics()
    with few_bins(1000), mock.patch.object(streaming, "PENDING", 5000):
        for number in range(6):
            for anomaly_map, mask in some:
                pixels.add(anomaly_map + np.float32(0.1 * number), mask)
                assert sum(len(bins) for bins, _ in pixels._pending) == pixels._pending_bins <= 5000
    assert len(pixels._bins) <= 1000


# Curves for plots


def test_reduced_curves_have_the_same_ends_and_areas() -> None:
    some = smooth_images(7)
    pixels = counted(some)
    roc, pr, pro = pixels.roc_curve(), pixels.pr_curve(), pixels.pro_curve()
    for curve in (roc, pr, pro):
        assert len(curve.thresholds) <= CURVE_POINTS
        assert (np.diff(curve.thresholds) < 0).all()
    for x, y in ((roc.fpr, roc.tpr), (pro.fpr, pro.pro)):
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
    assert np.trapezoid(roc.tpr, roc.fpr) == pytest.approx(pixels.auroc(), abs=1e-3)
    assert np.trapezoid(pro.pro, pro.fpr) == pytest.approx(pixels.aupro(1.0), abs=1e-3)
    assert np.sum(np.diff(pr.recall, prepend=0) * pr.precision) == pytest.approx(pixels.average_precision(), abs=2e-3)
    assert pr.recall[-1] == 1


def test_few_distinct_scores_give_the_exact_curves() -> None:
    anomaly_map = np.array([[3, 1, 2], [2, 0, 1]], np.float32)
    mask = np.array([[True, False, True], [False, False, False]])
    pixels = counted([(anomaly_map, mask)])
    roc, pro = roc_curve(anomaly_map.ravel(), mask.ravel()), pro_curve([anomaly_map], [mask])
    np.testing.assert_allclose(pixels.roc_curve().fpr, roc.fpr, rtol=1e-12)
    np.testing.assert_allclose(pixels.roc_curve().tpr, roc.tpr, rtol=1e-12)
    np.testing.assert_allclose(pixels.roc_curve().thresholds, roc.thresholds, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(pixels.pro_curve().pro, pro.pro, rtol=1e-12)


# Undefined metrics and invalid input


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_is_refused_and_not_counted(bad: float) -> None:
    some = smooth_images(8)[:2]
    pixels, before = counted(some), counted(some)
    bad_map = some[0][0].copy()
    bad_map[1, 2] = np.copysign(np.float32(bad), np.float32(math.copysign(1, bad)))
    with pytest.raises(ValueError, match="must be finite"):
        pixels.add(bad_map, some[0][1])
    same(pixels, before)


@pytest.mark.parametrize("value", [np.finfo(np.float32).max, np.finfo(np.float32).min])
def test_the_largest_numbers_are_accepted(value: np.float32) -> None:
    pixels = counted([(np.array([[value, 0, -1e30, 1e-45]], np.float32), np.array([[True, False, False, False]]))])
    assert pixels.auroc() == (1 if value > 0 else 0)
    assert math.isfinite(pixels.f1_max()[1])


@pytest.mark.parametrize("truth", [True, False])
def test_metrics_of_pixels_with_one_label_are_undefined(truth: bool) -> None:
    pixels = counted([(np.ones((2, 3), np.float32), np.full((2, 3), truth))])
    of_rates = (pixels.auroc, pixels.auroc_up_to, pixels.aupro, pixels.roc_curve, pixels.pro_curve)
    for metric in (*of_rates, pixels.average_precision, pixels.f1_max, pixels.pr_curve):
        with pytest.raises(UndefinedMetric, match="nothing normal" if truth else "nothing abnormal"):
            metric()
    with pytest.raises(UndefinedMetric):
        pixels.error_bound()


def test_metrics_without_pixels_are_undefined() -> None:
    pixels = PixelMetrics()
    pixels.merge(PixelMetrics())
    pixels.add(np.zeros((0, 4), np.float32), np.zeros((0, 4), bool))
    for metric in (pixels.auroc, pixels.aupro, pixels.average_precision, pixels.f1_max, pixels.error_bound):
        with pytest.raises(UndefinedMetric):
            metric()


@pytest.mark.usefixtures("unchecked")
def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must have one size"):
        PixelMetrics().add(np.zeros((3, 4), np.float32), np.zeros((4, 3), bool))


@pytest.mark.usefixtures("unchecked")
def test_double_precision_is_rounded_to_single() -> None:
    some = smooth_images(9)
    same(counted([(anomaly_map.astype(np.float64), mask) for anomaly_map, mask in some]), counted(some))
