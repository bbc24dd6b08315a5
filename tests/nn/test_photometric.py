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
    """Grey images of one brightness, each with its contrast."""
    pattern = torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    pattern = (pattern - pattern.mean()) / pattern.std(correction=0)
    return torch.cat([brightness * (1 + contrast * pattern) for contrast in contrasts]).expand(-1, 3, -1, -1)


def fitted(images: Tensor) -> PhotometricNormalization:
    light = PhotometricNormalization()
    light.fit(torch.split(images, 2))
    return light


def measured(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = np.einsum("nchw,c->nhw", images.numpy().astype(np.float64), LUMINANCE).reshape(len(images), -1)
    return values.mean(1), values.std(1) / values.mean(1)


def test_what_has_learnt_nothing_changes_nothing() -> None:
    images = to_batch(cookies(3, (32, 48)))
    assert torch.equal(PhotometricNormalization()(images), images)


def test_the_usual_light_is_the_geometric_mean_of_good_images() -> None:
    images = to_batch(cookies(5, (32, 48)))
    light, (brightness, contrast) = fitted(images), measured(images)
    assert float(light.brightness) == pytest.approx(np.exp(np.log(brightness).mean()), rel=1e-5)
    assert float(light.contrast) == pytest.approx(np.exp(np.log(contrast).mean()), rel=1e-5)
    variance = np.log(contrast).var()
    assert light.exponents.tolist() == pytest.approx([1, variance / (variance + CONTRAST_OF_CONTENT**2)], rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.55, 1.8))
def test_an_image_that_is_brighter_or_darker_becomes_what_it_was(gain: float) -> None:
    images = to_batch(cookies(4, (32, 48)))
    light = fitted(images)
    torch.testing.assert_close(light(gain * images[:1]), light(images[:1]), rtol=1e-4, atol=1e-5)
    assert measured(light(gain * images))[0] == pytest.approx(float(light.brightness), rel=1e-4)


def test_contrast_is_undone_as_far_as_good_images_differ_in_it() -> None:
    alike, unlike = fitted(images_of([0.2] * 6)), fitted(images_of([0.05, 0.1, 0.2, 0.4, 0.8]))
    starker = images_of([0.3])
    assert measured(alike(starker))[1] == pytest.approx(0.3, rel=1e-4)
    assert unlike.exponents[1] > 0.9
    assert measured(unlike(starker))[1] == pytest.approx(
        0.3 ** (1 - float(unlike.exponents[1])) * 0.2 ** float(unlike.exponents[1])
    )


def test_contrast_may_be_left_alone() -> None:
    light, images = PhotometricNormalization(adjust_contrast=False), images_of([0.05, 0.4, 0.8])
    light.fit([images])
    torch.testing.assert_close(light(images), images)


def test_there_is_a_limit_to_what_light_can_do() -> None:
    light = fitted(images_of([0.2] * 4))
    dark = images_of([0.2], brightness=0.01)
    torch.testing.assert_close(light(dark), MAX_GAIN * dark)
    black = torch.zeros(1, 3, 24, 32)
    assert torch.isfinite(light(black)).all()
    assert torch.isfinite(fitted(black.expand(3, -1, -1, -1))(images_of([0.2]))).all()
