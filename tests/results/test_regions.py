"""Regions against scikit-image: labels, areas, boxes and order; and their polygons against the pixels."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import draw, measure

from metalad.results.regions import MAX_REGIONS, Region, above, find_regions

MAPS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda size: hnp.arrays(np.float32, size, elements=st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0, 3.0]))
)
THRESHOLD = 0.5
# scikit-image has no types of these.
label: Any = measure.label
regionprops: Any = measure.regionprops
polygon2mask: Any = draw.polygon2mask


def area_of(polygon: tuple[tuple[float, float], ...]) -> float:
    """The area of a polygon, by the shoelace formula; positive in either direction."""
    x, y = np.array(polygon).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def centers_inside(polygon: tuple[tuple[float, float], ...], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centers are inside a polygon; a pixel's center is half a pixel from its edges."""
    vertices = np.array([(y - 0.5, x - 0.5) for x, y in polygon])
    return np.asarray(polygon2mask(shape, vertices), bool)


def filled(inside: np.ndarray) -> np.ndarray:
    """A region with its holes: all pixels that are not connected to the border of the image from outside."""
    outside = label(np.pad(~inside, 1, constant_values=True), connectivity=2)
    return np.asarray(outside != outside[0, 0])[1:-1, 1:-1]


@settings(max_examples=100, deadline=None)
@given(MAPS)
def test_regions_are_those_of_scikit_image(anomaly_map: np.ndarray) -> None:
    regions = find_regions(anomaly_map, THRESHOLD)
    labels = label(anomaly_map > THRESHOLD, connectivity=1)
    properties = regionprops(labels, intensity_image=anomaly_map)
    expected = [
        ((int(left), int(top), int(right - left), int(bottom - top)), int(one.area), float(one.intensity_max))
        for one in properties
        for top, left, bottom, right in [one.bbox]
    ]
    assert sorted((region.box, region.area, region.peak_score) for region in regions) == sorted(expected)
    peaks = [region.peak_score for region in regions]
    assert peaks == sorted(peaks, reverse=True)
    assert sum(region.area for region in regions) == (anomaly_map > THRESHOLD).sum()


@settings(max_examples=100, deadline=None)
@given(MAPS)
def test_a_polygon_encloses_the_centers_of_its_region_and_no_others(anomaly_map: np.ndarray) -> None:
    labels = label(anomaly_map > THRESHOLD, connectivity=1)
    regions = find_regions(anomaly_map, THRESHOLD)
    for region in regions:
        left, top, width, height = region.box
        x, y = np.array(region.polygon).T
        assert (x.min(), x.max(), y.min(), y.max()) == (left, left + width, top, top + height)
        covered = centers_inside(region.polygon, anomaly_map.shape)
        matches = [filled(labels == one.label) for one in regionprops(labels) if one.area == region.area]
        assert any(np.array_equal(covered, inside) for inside in matches)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5), (4, 1), (3, 2), (7, 9)])
def test_the_polygon_of_a_rectangle_cuts_its_corners_by_half_a_pixel(width: int, height: int) -> None:
    anomaly_map = np.zeros((12, 11), np.float32)
    anomaly_map[2 : 2 + height, 3 : 3 + width] = 0.75
    (region,) = find_regions(anomaly_map, THRESHOLD)
    assert (region.box, region.area, region.peak_score) == ((3, 2, width, height), width * height, 0.75)
    assert area_of(region.polygon) == width * height - 4 * 0.5 * 0.5 * 0.5
    corners = {(3.0, 2.5), (3.5, 2.0), (2.5 + width, 2.0), (3.0 + width, 2.5)}
    corners |= {(3.0 + width, 1.5 + height), (2.5 + width, 2.0 + height), (3.5, 2.0 + height), (3.0, 1.5 + height)}
    assert set(region.polygon) == corners
    assert len(region.polygon) == len(corners)  # no vertex is repeated, and none lies on a straight edge


def test_a_region_at_the_border_of_the_image_ends_there() -> None:
    (region,) = find_regions(np.ones((4, 6), np.float32), THRESHOLD)
    assert (region.box, region.area) == ((0, 0, 6, 4), 24)
    x, y = np.array(region.polygon).T
    assert (x.min(), x.max(), y.min(), y.max()) == (0, 6, 0, 4)


def test_pixels_that_touch_at_corners_are_separate_regions() -> None:
    regions = find_regions(np.eye(3, dtype=np.float32), THRESHOLD)
    assert [region.box for region in regions] == [(0, 0, 1, 1), (1, 1, 1, 1), (2, 2, 1, 1)]


def test_the_polygon_of_a_ring_is_its_outer_boundary() -> None:
    anomaly_map = np.zeros((30, 30), np.float32)
    anomaly_map[5:25, 5:25] = 1
    anomaly_map[7:23, 7:23] = 0
    anomaly_map[10:12, 10:12] = 2
    inner, ring = find_regions(anomaly_map, THRESHOLD)
    assert (inner.box, inner.area) == ((10, 10, 2, 2), 4)
    assert (ring.box, ring.area) == ((5, 5, 20, 20), 400 - 256)
    assert area_of(ring.polygon) == 400 - 0.5


def test_regions_are_ordered_by_peak_and_limited() -> None:
    count = MAX_REGIONS + 20
    anomaly_map = np.zeros((1, 2 * count), np.float32)
    peaks = np.random.default_rng(0).permutation(count) + 1
    anomaly_map[0, ::2] = peaks
    regions = find_regions(anomaly_map, THRESHOLD)
    assert [region.peak_score for region in regions] == list(range(count, count - MAX_REGIONS, -1))
    assert [region.box[0] for region in regions] == [2 * int(np.argmax(peaks == peak)) for peak in range(count, 20, -1)]


@pytest.mark.parametrize("peak", [1.0, 3.0])
def test_specks_are_left_out_unless_they_have_the_highest_peak(peak: float) -> None:
    anomaly_map = np.zeros((200, 300), np.float32)
    anomaly_map[20:22, 10:13] = 2  # 6 of 60,000 pixels
    anomaly_map[100, 50:55] = peak  # 5
    anomaly_map[150, 250] = 1
    areas = [region.area for region in find_regions(anomaly_map, THRESHOLD)]
    assert areas == ([6] if peak < 2 else [5, 6])


def test_regions_of_equal_peaks_are_in_reading_order() -> None:
    anomaly_map = np.zeros((5, 5), np.float32)
    anomaly_map[::2, ::2] = 1
    assert [region.box[1::-1] for region in find_regions(anomaly_map, THRESHOLD)] == [
        (top, left) for top in (0, 2, 4) for left in (0, 2, 4)
    ]


def test_a_map_that_does_not_exceed_the_threshold_has_no_region() -> None:
    assert find_regions(np.full((4, 4), 0.5, np.float32), 0.5) == ()
    assert find_regions(np.zeros((4, 4), np.float32), np.inf) == ()
    assert find_regions(np.ones((4, 4), np.float32), 1e300) == ()


def test_a_map_is_compared_in_double_precision() -> None:
    """A score exceeds a threshold that is smaller by less than the precision of the map; so must the map's maximum."""
    anomaly_map = np.full((3, 3), 0.7, np.float32)
    score = float(anomaly_map.max())
    for threshold, expected in ((np.nextafter(score, 0), True), (score, False), (np.nextafter(score, 1), False)):
        assert (score > threshold) == expected
        assert above(anomaly_map, float(threshold)).all() == expected
        assert bool(find_regions(anomaly_map, float(threshold))) == expected


@settings(max_examples=20, deadline=None)
@given(MAPS)
def test_a_region_is_read_back_from_json(anomaly_map: np.ndarray) -> None:
    for region in find_regions(anomaly_map, THRESHOLD):
        values = json.loads(json.dumps(region.to_dict(), allow_nan=False))
        assert set(values) == {"box", "area", "peak_score", "polygon"}
        assert Region.from_dict(values) == region
