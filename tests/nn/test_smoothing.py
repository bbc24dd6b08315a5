import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from metalad.nn.smoothing import EDGE_CONTRAST, SUBSAMPLING, GuidedSmoothing, Smoothing, gaussian_matrix

SIDES = st.integers(1, 40)
SIGMAS = st.sampled_from([0.3, 1.0, 1.5, 4.0, 9.0])


@settings(deadline=None)
@given(SIDES, SIDES, SIGMAS, st.integers(0, 2**32 - 1))
def test_smoothing_equals_scipy_gaussian_filter(height: int, width: int, sigma: float, seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, height, width), dtype=np.float32)
    expected = ndimage.gaussian_filter(maps.astype(float), sigma, mode="reflect", axes=(1, 2))
    np.testing.assert_allclose(Smoothing(height, width, sigma)(torch.from_numpy(maps)).numpy(), expected, atol=1e-6)


@settings(deadline=None)
@given(SIDES, SIGMAS)
def test_smoothing_preserves_constant_maps(size: int, sigma: float) -> None:
    matrix = gaussian_matrix(size, sigma)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(size), atol=1e-6, rtol=0)


def test_smoothing_with_sigma_0_returns_the_input() -> None:
    maps = torch.rand(2, 5, 7)
    assert torch.equal(Smoothing(5, 7, 0.0)(maps), maps)


def test_smoothing_adds_nothing_to_the_state_dict() -> None:
    assert not Smoothing(8, 8, 1.0).state_dict()


def step_image_and_map(side: int) -> tuple[Tensor, Tensor]:
    """Return an image that is dark on the left and bright on the right, and a map that is 1 on the right."""
    step = (torch.arange(side) >= side // 2).float().expand(1, side, side)
    return (0.2 + 0.6 * step)[:, None].expand(1, 3, side, side), step


def test_guided_smoothing_equals_reference_guided_filter() -> None:
    """Reference: scipy in double precision, a local linear fit by least squares under a Gaussian window."""
    rng, sigma = np.random.default_rng(0), 3.0
    images, maps = rng.random((2, 3, 24, 40), dtype=np.float32), rng.random((2, 24, 40), dtype=np.float32)

    def window(planes: np.ndarray) -> np.ndarray:
        return np.asarray(
            ndimage.gaussian_filter(planes, sigma / math.sqrt(2) / SUBSAMPLING, mode="reflect", axes=(1, 2))
        )

    def downsampled(planes: np.ndarray) -> np.ndarray:
        return np.asarray(
            planes.reshape(2, 24 // SUBSAMPLING, SUBSAMPLING, 40 // SUBSAMPLING, SUBSAMPLING).mean((2, 4))
        )

    guide = images.astype(float).mean(1)
    guide /= guide.mean((1, 2), keepdims=True)
    brightness, level = downsampled(guide), downsampled(maps.astype(float))
    covariance = window(brightness * level) - window(brightness) * window(level)
    slope = covariance / (window(brightness**2) - window(brightness) ** 2 + EDGE_CONTRAST**2)
    coefficients = [window(slope), window(window(level) - slope * window(brightness))]
    planes = torch.from_numpy(np.stack(coefficients, 1))
    slopes, offsets = nn.functional.interpolate(planes, (24, 40), mode="bilinear").numpy().swapaxes(0, 1)
    filtered = GuidedSmoothing(24, 40, sigma)(torch.from_numpy(maps), torch.from_numpy(images))
    np.testing.assert_allclose(filtered, slopes * guide + offsets, atol=1e-5)


@settings(deadline=None)
@given(SIDES, SIDES, SIGMAS, st.integers(0, 2**32 - 1))
def test_guided_smoothing_preserves_constant_maps(height: int, width: int, sigma: float, seed: int) -> None:
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    filtered = GuidedSmoothing(height, width, sigma)(torch.full((1, height, width), 0.5), images)
    torch.testing.assert_close(filtered, torch.full((1, height, width), 0.5), atol=1e-3, rtol=0)


def test_guided_smoothing_of_a_constant_image_equals_gaussian_filter() -> None:
    point = torch.zeros(1, 64, 64)
    point[0, 31:33, 31:33] = 100.0
    filtered = GuidedSmoothing(64, 64, 6.0)(point, torch.full((1, 3, 64, 64), 0.7))
    torch.testing.assert_close(filtered, Smoothing(64, 64, 6.0)(point), atol=0.05 * float(filtered.max()), rtol=0)


def test_guided_smoothing_preserves_image_edges() -> None:
    images, step = step_image_and_map(64)
    guided, gaussian = GuidedSmoothing(64, 64, 6.0)(step, images), Smoothing(64, 64, 6.0)(step)
    assert (guided - step).abs().mean() < (gaussian - step).abs().mean() / 4


@pytest.mark.parametrize("brightness", [0.3, 1.5])
def test_guided_smoothing_is_invariant_to_image_brightness(brightness: float) -> None:
    images, step = step_image_and_map(32)
    module, maps = GuidedSmoothing(32, 32, 3.0), Smoothing(32, 32, 2.0)(step)
    torch.testing.assert_close(module(maps, brightness * images), module(maps, images), atol=1e-4, rtol=0)


def test_guided_smoothing_of_a_black_image_is_finite() -> None:
    filtered = GuidedSmoothing(16, 16, 2.0)(torch.rand(1, 16, 16), torch.zeros(1, 3, 16, 16))
    assert filtered.isfinite().all()
