"""Overlays drawn in bands, and the values of map files."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metalad.data.images import resize_map
from metalad.runtime.errors import RunError
from metalad.visualization.overlay import (
    JPEG_MAX_SIDE,
    MAP_STEPS,
    MAX_RATIO,
    draw_overlay,
    in_thresholds,
    overlay_suffix,
    save_picture,
    to_steps,
)
from tests.overlays import exact_overlay


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20))
def test_steps_are_monotonic_and_fixed_at_the_threshold(values: list[float]) -> None:
    relative = np.array([[0.0, 1.0, 4.0, *sorted(values)]], np.float32)
    steps = to_steps(relative)[0]
    assert steps[:3].tolist() == [0, MAP_STEPS, 65535]
    assert (np.diff(steps[3:].astype(int)) >= 0).all()
    exact = np.minimum(np.float64(relative[0]) * MAP_STEPS, 65535)
    assert np.abs(steps - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("threshold", "expected"), [(2.0, 0.25), (1e-60, MAX_RATIO), (1e300, 0.0), (math.inf, 0.0), (5e-324, MAX_RATIO)]
)
def test_a_map_is_divided_by_the_threshold_without_overflow(threshold: float, expected: float) -> None:
    anomaly_map = np.full((3, 4), 0.5, np.float32)
    with np.errstate(over="ignore"):
        relative = in_thresholds(anomaly_map, threshold)
    assert relative.dtype == np.float32
    np.testing.assert_array_equal(relative, np.full((3, 4), expected, np.float32))


@pytest.mark.parametrize("peak", [0.1, 0.9, 30.0])
@pytest.mark.parametrize("size", [(200, 90), (64, 64), (65, 8), (3, 300)])
def test_an_overlay_drawn_in_bands_equals_the_overlay_drawn_at_once(peak: float, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    before = image.copy()
    small = rng.random((8, 8), np.float32)
    relative = resize_map(small / small.max() * np.float32(peak), size)
    steps = np.rint(relative * MAP_STEPS).astype(np.float32) / MAP_STEPS
    drawn = draw_overlay(image, steps)
    np.testing.assert_array_equal(drawn, exact_overlay(image, steps, 1.0))
    assert (drawn != image).any() == (peak > 0.125)
    np.testing.assert_array_equal(image, before)
    one_color_apart = 12  # gray levels
    difference = np.abs(draw_overlay(image, relative).astype(int) - exact_overlay(image, relative, 1.0))
    assert difference.max() <= one_color_apart
    assert (difference > 0).mean() < 0.05


def test_a_picture_too_wide_for_jpeg_is_a_png() -> None:
    assert overlay_suffix(JPEG_MAX_SIDE, 8) == overlay_suffix(8, JPEG_MAX_SIDE) == ".jpg"
    assert overlay_suffix(JPEG_MAX_SIDE + 1, 8) == overlay_suffix(8, JPEG_MAX_SIDE + 1) == ".png"


def test_a_saved_map_is_read_back_exactly(tmp_path: Path) -> None:
    steps = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    save_picture(tmp_path / "deep" / "map.png", steps)
    with Image.open(tmp_path / "deep" / "map.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.array(image), steps)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["map.png"]


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="a file exists where a folder is needed"):
        save_picture(tmp_path / "file" / "x.png", np.zeros((8, 8), np.uint16))
