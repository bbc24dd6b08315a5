import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from matplotlib import colormaps
from scipy import ndimage

from metalad.visualization.maps import OUTLINE_COLOUR, contour, heat_map, overlay

MAPS = npst.arrays(np.float32, (5, 7), elements=st.floats(-4, 4, width=32))
MASKS = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=9))


def _lightness(colours: np.ndarray) -> np.ndarray:
    return np.asarray(colours @ np.array([0.2126, 0.7152, 0.0722]))


def test_the_heat_map_runs_from_the_darkest_colour_to_the_lightest_without_turning_back() -> None:
    ramp = np.linspace(2.0, 6.0, 256, dtype=np.float32)[np.newaxis]
    colours = heat_map(ramp, 2.0, 6.0)[0]
    assert (np.diff(_lightness(colours)) >= -0.5).all()  # half a grey level: the table's own rounding
    inferno = colormaps["inferno"]
    np.testing.assert_array_equal(colours[0], np.rint(255 * np.array(inferno(0.0)[:3])))
    np.testing.assert_array_equal(colours[-1], np.rint(255 * np.array(inferno(1.0)[:3])))


@given(MAPS)
def test_values_beyond_the_ends_get_the_colours_of_the_ends(anomaly_map: np.ndarray) -> None:
    clipped = np.clip(anomaly_map, -1, 1)
    np.testing.assert_array_equal(heat_map(anomaly_map, -1.0, 1.0), heat_map(clipped, -1.0, 1.0))


@given(MAPS)
def test_a_range_without_width_splits_the_map_instead_of_dividing_by_zero(anomaly_map: np.ndarray) -> None:
    colours = heat_map(anomaly_map, 1.0, 1.0)
    hot = _lightness(colours) > 128
    np.testing.assert_array_equal(hot, anomaly_map > 1)


@given(MAPS, npst.arrays(np.uint8, (5, 7, 3)))
def test_the_overlay_leaves_the_picture_untouched_where_the_map_is_low(
    anomaly_map: np.ndarray, image: np.ndarray
) -> None:
    drawn = overlay(image, anomaly_map, 0.0, 2.0)
    np.testing.assert_array_equal(drawn[anomaly_map <= 0], image[anomaly_map <= 0])
    assert not np.shares_memory(drawn, image)


def test_the_overlay_colours_the_picture_where_the_map_is_high() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[1, 2] = 1
    changed = (overlay(image, anomaly_map, 0.0, 1.0) != image).any(axis=-1)
    np.testing.assert_array_equal(changed, anomaly_map > 0)


def test_the_overlay_draws_the_outline_on_top_of_the_heat() -> None:
    image = np.full((9, 9, 3), 90, np.uint8)
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    drawn = overlay(image, mask.astype(np.float32), 0.0, 1.0, mask)
    outlined = (drawn == OUTLINE_COLOUR).all(axis=-1)
    assert outlined[2, 2:7].all()
    assert not outlined[4, 4]
    assert not outlined[~mask].any()


@given(MASKS, st.integers(1, 3))
def test_the_contour_is_what_erosion_takes_away(mask: np.ndarray, width: int) -> None:
    eroded = ndimage.binary_erosion(mask, iterations=width)
    np.testing.assert_array_equal(contour(mask, width), mask & ~eroded)
