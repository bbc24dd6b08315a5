"""Nuisances: each does what its name says and no more, brings no black border, and gives the same bytes every time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from metalad.data.corruptions import (
    CORRUPTIONS,
    brightness,
    contrast,
    gaussian_blur,
    gaussian_noise,
    jpeg,
    perturbed,
    rotation,
    shift,
)
from tests.cookies import cookies

SIDES = st.integers(8, 20)
IMAGES = st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, (*size, 3)))
RAMP = np.broadcast_to(np.arange(60, 124, dtype=np.uint8)[None, :, None], (48, 64, 3))


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@given(IMAGES)
def test_a_change_by_nothing_changes_nothing(image: np.ndarray) -> None:
    for same in (
        brightness(image, 0.0),
        contrast(image, 0.0),
        shift(image, 0),
        rotation(image, 0.0),
        gaussian_noise(image, 0.0, rng()),
        gaussian_blur(image, 0.0),
    ):
        np.testing.assert_array_equal(same, image)


@given(st.sampled_from(sorted(CORRUPTIONS)), IMAGES)
def test_every_nuisance_keeps_shape_and_input_and_gives_the_same_bytes_again(name: str, image: np.ndarray) -> None:
    kept = image.copy()
    changed = CORRUPTIONS[name](image, rng())
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert changed.flags.c_contiguous
    np.testing.assert_array_equal(image, kept)
    np.testing.assert_array_equal(CORRUPTIONS[name](image, rng()), changed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_nuisance_changes_a_photograph_a_little(name: str) -> None:
    (photograph,) = cookies(1, (64, 64))
    changed = CORRUPTIONS[name](photograph, rng())
    difference = np.abs(changed.astype(int) - photograph).mean()
    assert 0.2 < difference < 20


@given(hnp.arrays(np.uint8, (9, 11, 3), elements=st.integers(0, 23)), st.sampled_from([-0.1, 0.1]))
def test_brightness_scales_the_mean_where_nothing_clips(tenths: np.ndarray, change: float) -> None:
    image = tenths * np.uint8(10)  # tenths of which are whole numbers
    assert brightness(image, change).mean() == pytest.approx((1 + change) * image.mean(), rel=1e-12)


def test_brightness_stops_at_white() -> None:
    white = np.full((8, 8, 3), 250, np.uint8)
    assert (brightness(white, 0.1) == 255).all()


@given(hnp.arrays(np.uint8, (9, 10, 3), elements=st.integers(60, 180)), st.sampled_from([-0.1, 0.1]))
def test_contrast_scales_the_deviation_and_keeps_the_mean(image: np.ndarray, change: float) -> None:
    changed = contrast(image, change).astype(float)
    mean = image.mean()
    # Bytes are rounded: by half a grey level at most.
    assert np.abs((changed - mean) - (1 + change) * (image - mean)).max() <= 0.5 + 1e-9


@given(IMAGES, st.integers(0, 4))
def test_a_shifted_image_is_a_slice_with_its_mirror_image_before_it(image: np.ndarray, pixels: int) -> None:
    shifted = shift(image, pixels)
    np.testing.assert_array_equal(shifted[:, pixels:], image[:, : image.shape[1] - pixels])
    np.testing.assert_array_equal(shifted[:, :pixels], image[:, :pixels][:, ::-1])


@given(st.integers(1, 255), st.floats(-10, 10), SIDES, SIDES)
def test_a_turned_plain_image_is_plain_up_to_the_corners(level: int, degrees: float, height: int, width: int) -> None:
    plain = np.full((height, width, 3), level, np.uint8)
    np.testing.assert_array_equal(rotation(plain, degrees), plain)


def test_a_turned_ramp_is_what_the_angle_says() -> None:
    # Anticlockwise by t about the centre: what was at (x cos t - y sin t), y downwards, is now at (x, y).
    turned = rotation(RAMP, 2.0).astype(float)
    y, x = np.mgrid[:48, :64] - np.array([23.5, 31.5])[:, None, None]
    expected = 60 + 31.5 + x * math.cos(math.radians(2)) - y * math.sin(math.radians(2))
    inner = (slice(4, -4), slice(4, -4))
    assert np.abs(turned[..., 0] - expected)[inner].max() <= 1.0
    assert np.abs(turned[..., 0] - RAMP[..., 0])[inner].max() > 0.5


def test_jpeg_loses_more_at_lower_quality() -> None:
    (photograph,) = cookies(1, (64, 64))
    losses = [np.abs(jpeg(photograph, quality).astype(int) - photograph).mean() for quality in (95, 70, 20)]
    assert 0 < losses[0] < losses[1] < losses[2]


def test_noise_has_the_deviation_asked_for_and_no_mean() -> None:
    flat = np.full((100, 100, 3), (120, 128, 136), np.uint8)
    noise = gaussian_noise(flat, 4.0, rng()).astype(float) - flat
    # Rounding to bytes adds a variance of 1/12; 30,000 values tell the deviation to 0.4 %.
    assert noise.std() == pytest.approx(math.sqrt(16 + 1 / 12), rel=0.02)
    assert abs(noise.mean()) < 0.1
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 2].ravel())[0, 1]) < 0.05


def test_a_grey_image_stays_grey_under_noise() -> None:
    grey = np.repeat(cookies(1, (64, 64))[0][..., :1], 3, -1)
    noisy = gaussian_noise(grey, 4.0, rng())
    assert (noisy == noisy[..., :1]).all()
    assert not np.array_equal(noisy, grey)


def test_blur_spreads_a_point_as_a_gaussian_and_keeps_colours_apart() -> None:
    point = np.zeros((15, 15, 3), np.uint8)
    point[7, 7, 1] = 255
    blurred = gaussian_blur(point, 1.0)
    assert not blurred[..., [0, 2]].any()
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    expected = 255 * ndimage.convolve1d(np.eye(1, 15, 7)[0], kernel / kernel.sum())
    expected = np.outer(expected, expected) / 255
    assert np.abs(blurred[..., 1] - expected).max() <= 0.5 + 1e-6


def test_a_drifted_photograph_is_near_itself_and_never_twice_the_same() -> None:
    photograph = cookies(1, (96, 128))[0]
    one, again, other = (perturbed(photograph, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    for seed in range(20):
        found = perturbed(photograph, np.random.default_rng(seed))
        assert found.shape == photograph.shape
        assert found.dtype == np.uint8
        assert abs(found.mean() / photograph.mean() - 1) < 0.16
