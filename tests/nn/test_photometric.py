import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalad.nn.photometric import CONTRAST_OF_CONTENT, LUMINANCE, MAX_GAIN, PhotometricNormalization
from metalad.nn.pixels import to_batch
from tests.cookies import cookies


def images_of(contrasts: list[float], brightness: float = 0.4) -> Tensor:
    """Return gray images of equal brightness with the given contrasts."""
    pattern = torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    pattern = (pattern - pattern.mean()) / pattern.std(correction=0)
    return torch.cat([brightness * (1 + contrast * pattern) for contrast in contrasts]).expand(-1, 3, -1, -1)


def fitted(images: Tensor) -> PhotometricNormalization:
    normalization = PhotometricNormalization()
    normalization.fit(torch.split(images, 2))
    return normalization


def measured(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = np.einsum("nchw,c->nhw", images.numpy().astype(np.float64), LUMINANCE).reshape(len(images), -1)
    return values.mean(1), values.std(1) / values.mean(1)


def test_unfitted_normalization_returns_the_input() -> None:
    images = to_batch(cookies(3, (32, 48)))
    assert torch.equal(PhotometricNormalization()(images), images)


def test_fit_computes_geometric_means_and_exponents() -> None:
    images = to_batch(cookies(5, (32, 48)))
    normalization, (brightness, contrast) = fitted(images), measured(images)
    assert float(normalization.brightness) == pytest.approx(np.exp(np.log(brightness).mean()), rel=1e-5)
    assert float(normalization.contrast) == pytest.approx(np.exp(np.log(contrast).mean()), rel=1e-5)
    variance = np.log(contrast).var()
    assert normalization.exponents.tolist() == pytest.approx(
        [1, variance / (variance + CONTRAST_OF_CONTENT**2)], rel=1e-4
    )


@settings(max_examples=20, deadline=None)
@given(st.floats(0.55, 1.8))
def test_brightness_changes_are_removed(gain: float) -> None:
    images = to_batch(cookies(4, (32, 48)))
    normalization = fitted(images)
    torch.testing.assert_close(normalization(gain * images[:1]), normalization(images[:1]), rtol=1e-4, atol=1e-5)
    assert measured(normalization(gain * images))[0] == pytest.approx(float(normalization.brightness), rel=1e-4)


def test_contrast_is_corrected_by_its_variation_between_images() -> None:
    constant, varying = fitted(images_of([0.2] * 6)), fitted(images_of([0.05, 0.1, 0.2, 0.4, 0.8]))
    images = images_of([0.3])
    assert measured(constant(images))[1] == pytest.approx(0.3, rel=1e-4)
    assert varying.exponents[1] > 0.9
    assert measured(varying(images))[1] == pytest.approx(
        0.3 ** (1 - float(varying.exponents[1])) * 0.2 ** float(varying.exponents[1])
    )


def test_contrast_is_not_changed_if_disabled() -> None:
    normalization, images = PhotometricNormalization(adjust_contrast=False), images_of([0.05, 0.4, 0.8])
    normalization.fit([images])
    torch.testing.assert_close(normalization(images), images)


def test_gain_is_limited_and_black_images_stay_finite() -> None:
    normalization = fitted(images_of([0.2] * 4))
    dark = images_of([0.2], brightness=0.01)
    torch.testing.assert_close(normalization(dark), MAX_GAIN * dark)
    black = torch.zeros(1, 3, 24, 32)
    assert torch.isfinite(normalization(black)).all()
    assert torch.isfinite(fitted(black.expand(3, -1, -1, -1))(images_of([0.2]))).all()
