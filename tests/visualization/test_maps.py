import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from matplotlib import colormaps
from scipy import ndimage

from metalad.visualization.maps import OVERLAY_STRENGTH, blend, color_layer, contour, heat_map

MAPS = npst.arrays(np.float32, (5, 7), elements=st.floats(-4, 4, width=32))
MASKS = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=9))


def _lightness(colors: np.ndarray) -> np.ndarray:
    return np.asarray(colors @ np.array([0.2126, 0.7152, 0.0722]))


def _overlay(image: np.ndarray, anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    return blend(image, color_layer(anomaly_map, low, high))


def test_lightness_increases_monotonically_from_the_first_to_the_last_color() -> None:
    ramp = np.linspace(2.0, 6.0, 256, dtype=np.float32)[np.newaxis]
    colors = heat_map(ramp, 2.0, 6.0)[0]
    assert (np.diff(_lightness(colors)) >= -0.5).all()  # half a gray level: the rounding of the color table
    inferno = colormaps["inferno"]
    np.testing.assert_array_equal(colors, np.rint(255 * np.array(inferno(np.arange(256)))[:, :3]))


@given(MAPS)
def test_values_outside_the_range_get_the_first_or_last_color(anomaly_map: np.ndarray) -> None:
    clipped = np.clip(anomaly_map, -1, 1)
    np.testing.assert_array_equal(heat_map(anomaly_map, -1.0, 1.0), heat_map(clipped, -1.0, 1.0))


@given(MAPS)
def test_an_empty_range_thresholds_the_map_instead_of_dividing_by_zero(anomaly_map: np.ndarray) -> None:
    colors = heat_map(anomaly_map, 1.0, 1.0)
    above = _lightness(colors) > 128
    np.testing.assert_array_equal(above, anomaly_map > 1)


@given(MAPS, npst.arrays(np.uint8, (5, 7, 3)))
def test_the_overlay_does_not_change_the_image_where_the_map_is_low(anomaly_map: np.ndarray, image: np.ndarray) -> None:
    blended = _overlay(image, anomaly_map, 0.0, 2.0)
    np.testing.assert_array_equal(blended[anomaly_map <= 0], image[anomaly_map <= 0])
    assert not np.shares_memory(blended, image)


@given(npst.arrays(np.uint8, (5, 7, 3)), MAPS)
def test_the_overlay_is_the_weighted_mean_of_heat_map_and_image(image: np.ndarray, anomaly_map: np.ndarray) -> None:
    strength = np.clip(anomaly_map, 0, 1)[..., np.newaxis]
    opacity = OVERLAY_STRENGTH * strength**2 * (3 - 2 * strength)
    exact = (1 - opacity) * image + opacity * heat_map(anomaly_map, 0.0, 1.0)
    # An error of 1/510 in the strength changes the opacity by up to 1.5 * OVERLAY_STRENGTH / 510, and is rounded twice.
    assert (
        np.abs(_overlay(image, anomaly_map, 0.0, 1.0) - exact).max()
        <= 0.5 + 255 * (1.5 * OVERLAY_STRENGTH + 1) / 510 + 1e-3
    )


def test_the_overlay_colors_the_image_where_the_map_is_high() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[1, 2] = 1
    changed = (_overlay(image, anomaly_map, 0.0, 1.0) != image).any(axis=-1)
    np.testing.assert_array_equal(changed, anomaly_map > 0)


@given(MASKS, st.integers(1, 3))
def test_the_contour_is_the_mask_minus_its_erosion(mask: np.ndarray, width: int) -> None:
    eroded = ndimage.binary_erosion(mask, iterations=width)
    np.testing.assert_array_equal(contour(mask, width), mask & ~eroded)
