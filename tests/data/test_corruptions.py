"""Corruptions have the specified effect, add no black border, and are reproducible."""

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
    turned_in_other_light,
)
from tests.cookies import cookies

SIDES = st.integers(8, 20)
IMAGES = st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, (*size, 3)))
RAMP = np.broadcast_to(np.arange(60, 124, dtype=np.uint8)[None, :, None], (48, 64, 3))


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@given(IMAGES)
def test_corruptions_of_strength_zero_do_not_change_the_image(image: np.ndarray) -> None:
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
def test_corruptions_keep_the_shape_and_the_input_and_are_reproducible(name: str, image: np.ndarray) -> None:
    original = image.copy()
    changed = CORRUPTIONS[name](image, rng())
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert changed.flags.c_contiguous
    np.testing.assert_array_equal(image, original)
    np.testing.assert_array_equal(CORRUPTIONS[name](image, rng()), changed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_change_a_photograph_slightly(name: str) -> None:
    (photograph,) = cookies(1, (64, 64))
    changed = CORRUPTIONS[name](photograph, rng())
    difference = np.abs(changed.astype(int) - photograph).mean()
    assert 0.2 < difference < 20


@given(hnp.arrays(np.uint8, (9, 11, 3), elements=st.integers(0, 23)), st.sampled_from([-0.1, 0.1]))
def test_brightness_scales_the_mean_if_nothing_is_clipped(tenths: np.ndarray, change: float) -> None:
    image = tenths * np.uint8(10)  # a tenth of each value is an integer
    assert brightness(image, change).mean() == pytest.approx((1 + change) * image.mean(), rel=1e-12)


def test_brightness_is_clipped_at_white() -> None:
    white = np.full((8, 8, 3), 250, np.uint8)
    assert (brightness(white, 0.1) == 255).all()


@given(hnp.arrays(np.uint8, (9, 10, 3), elements=st.integers(60, 180)), st.sampled_from([-0.1, 0.1]))
def test_contrast_scales_the_deviation_and_keeps_the_mean(image: np.ndarray, change: float) -> None:
    changed = contrast(image, change).astype(float)
    mean = image.mean()
    # The rounding error of bytes is at most half a gray level.
    assert np.abs((changed - mean) - (1 + change) * (image - mean)).max() <= 0.5 + 1e-9


@given(IMAGES, st.integers(0, 4))
def test_a_shifted_image_is_extended_by_reflection(image: np.ndarray, pixels: int) -> None:
    shifted = shift(image, pixels)
    np.testing.assert_array_equal(shifted[:, pixels:], image[:, : image.shape[1] - pixels])
    np.testing.assert_array_equal(shifted[:, :pixels], image[:, :pixels][:, ::-1])


@given(st.integers(1, 255), st.floats(-10, 10), SIDES, SIDES)
def test_a_rotated_constant_image_is_constant_including_the_corners(
    level: int, degrees: float, height: int, width: int
) -> None:
    plain = np.full((height, width, 3), level, np.uint8)
    np.testing.assert_array_equal(rotation(plain, degrees), plain)


def test_a_rotated_ramp_equals_the_computed_ramp() -> None:
    # Counterclockwise rotation by t: the value at (x, y), with y downwards, was at x cos t - y sin t before.
    rotated = rotation(RAMP, 2.0).astype(float)
    y, x = np.mgrid[:48, :64] - np.array([23.5, 31.5])[:, None, None]
    expected = 60 + 31.5 + x * math.cos(math.radians(2)) - y * math.sin(math.radians(2))
    inner = (slice(4, -4), slice(4, -4))
    assert np.abs(rotated[..., 0] - expected)[inner].max() <= 1.0
    assert np.abs(rotated[..., 0] - RAMP[..., 0])[inner].max() > 0.5


def test_the_jpeg_error_increases_with_lower_quality() -> None:
    (photograph,) = cookies(1, (64, 64))
    losses = [np.abs(jpeg(photograph, quality).astype(int) - photograph).mean() for quality in (95, 70, 20)]
    assert 0 < losses[0] < losses[1] < losses[2]


def test_noise_has_the_given_standard_deviation_and_mean_zero() -> None:
    flat = np.full((100, 100, 3), (120, 128, 136), np.uint8)
    noise = gaussian_noise(flat, 4.0, rng()).astype(float) - flat
    # Rounding to bytes adds a variance of 1/12; with 30,000 values the standard error of the deviation is 0.4 %.
    assert noise.std() == pytest.approx(math.sqrt(16 + 1 / 12), rel=0.02)
    assert abs(noise.mean()) < 0.1
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 2].ravel())[0, 1]) < 0.05


def test_a_gray_image_with_noise_is_gray() -> None:
    gray = np.repeat(cookies(1, (64, 64))[0][..., :1], 3, -1)
    noisy = gaussian_noise(gray, 4.0, rng())
    assert (noisy == noisy[..., :1]).all()
    assert not np.array_equal(noisy, gray)


def test_a_blurred_point_is_a_gaussian_in_its_own_channel() -> None:
    point = np.zeros((15, 15, 3), np.uint8)
    point[7, 7, 1] = 255
    blurred = gaussian_blur(point, 1.0)
    assert not blurred[..., [0, 2]].any()
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    expected = 255 * ndimage.convolve1d(np.eye(1, 15, 7)[0], kernel / kernel.sum())
    expected = np.outer(expected, expected) / 255
    assert np.abs(blurred[..., 1] - expected).max() <= 0.5 + 1e-6


def test_half_of_the_perturbed_images_have_noise_that_compression_did_not_remove() -> None:
    """On an image of one color all deviations are noise; that of neighboring pixels is independent, as in a camera."""
    plain = np.full((64, 64, 3), 128, dtype=np.uint8)
    results = [perturbed(plain, np.random.default_rng(seed)).astype(np.float64) for seed in range(60)]
    noisy = [result for result in results if result.std() > 0]
    assert 20 <= len(noisy) <= 40
    assert max(result.std() for result in noisy) < 4.2
    for result in noisy:
        if result.std() > 1:
            deviations = result[..., 0] - result[..., 0].mean()
            correlation = (deviations[:, 1:] * deviations[:, :-1]).mean() / deviations.var()
            assert abs(correlation) < 0.1


def test_a_perturbed_photograph_is_similar_to_the_original_and_depends_on_the_seed() -> None:
    photograph = cookies(1, (96, 128))[0]
    first, same, different = (perturbed(photograph, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, different)
    for seed in range(20):
        result = perturbed(photograph, np.random.default_rng(seed))
        assert result.shape == photograph.shape
        assert result.dtype == np.uint8
        assert abs(result.mean() / photograph.mean() - 1) < 0.16


def test_a_turned_photograph_in_other_light_has_another_brightness_and_angle_and_no_noise() -> None:
    """Values of a plain image stay plain; those of a photograph that is turned back and scaled are nearly its own."""
    plain = np.full((32, 48, 3), 128, dtype=np.uint8)
    changed = [turned_in_other_light(plain, np.random.default_rng(seed)) for seed in range(40)]
    levels = np.array([image[0, 0, 0] for image in changed]) / 128
    assert all((image == image[0, 0]).all() for image in changed)
    assert 0.85 <= levels.min() < 0.88
    assert 1.12 < levels.max() <= 1.15
    photograph = cookies(1, (96, 128))[0]
    turned, numbers = turned_in_other_light(photograph, np.random.default_rng(3)), np.random.default_rng(3)
    factor, degrees = 1 + numbers.uniform(-0.15, 0.15), numbers.uniform(-3.0, 3.0)
    back = rotation(turned, -degrees) / factor
    differences = [np.abs(image - photograph)[16:-16, 16:-16].mean() for image in (back, turned / factor, turned * 1.0)]
    assert differences[0] < 0.7 * min(differences[1:])  # the rest is interpolation
