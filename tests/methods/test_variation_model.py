import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metalad.methods.variation_model import VariationModel, VariationModelConfig
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (24, 40)


def fitted(pixels: np.ndarray, **changes: object) -> VariationModel:
    values = {"image_size": pixels.shape[1:3], "smoothing_sigma": 1.0} | changes
    model = VariationModel(VariationModelConfig(**values))  # type: ignore[arg-type]
    model.fit(pixels, 0)
    return model


@given(st.integers(2, 9), st.integers(0, 2**31), st.sampled_from(["standard", "robust"]))
@settings(deadline=None, max_examples=20)
def test_moments_match_numpy_and_scipy(images: int, seed: int, statistics: str) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (images, *SIZE, 3), np.uint8)
    model = fitted(pixels, statistics=statistics)
    values = np.moveaxis(pixels / 255, -1, 1)
    if statistics == "standard":
        normal, variation = values.mean(0), values.std(0, ddof=1)
    else:
        normal, variation = np.median(values, 0), stats.median_abs_deviation(values, 0, scale="normal")
    np.testing.assert_allclose(model.normal, normal, rtol=1e-5)
    np.testing.assert_allclose(model.variation, np.maximum(variation, 2 / 255), rtol=1e-4)


def test_center_image_has_residual_zero() -> None:
    model = fitted(cookies(5, SIZE))
    assert torch.count_nonzero(model.residuals(model.normal[None]).values) == 0


def test_map_is_the_largest_deviation_over_colors_in_variations() -> None:
    model = fitted(cookies(5, SIZE))
    image = model.normal.clone()
    image[0, 3, 4] += 5 * model.variation[0, 3, 4]
    image[2, 3, 4] -= 7 * model.variation[2, 3, 4]
    anomaly_map = model.raw_map(model.residuals(image[None]))[0]
    assert float(anomaly_map[3, 4]) == pytest.approx(7, rel=1e-3)
    assert int(torch.count_nonzero(anomaly_map > 1e-3)) == 1


def test_constant_pixel_has_finite_residual() -> None:
    model = fitted(np.full((4, *SIZE, 3), 128, np.uint8))
    brighter = model.residuals(to_batch(np.full((1, *SIZE, 3), 138, np.uint8)))
    # 10 gray levels, divided by the minimum of 2
    torch.testing.assert_close(model.raw_map(brighter), torch.full((1, *SIZE), 5.0), rtol=1e-4, atol=0)


def test_defective_training_image_hardly_changes_the_robust_model() -> None:
    good = cookies(9, SIZE)
    contaminated = np.concatenate([good, 255 - good[:1]])
    for statistics, max_shift in (("robust", 0.02), ("standard", None)):
        shift = float(
            (fitted(contaminated, statistics=statistics).normal - fitted(good, statistics=statistics).normal)
            .abs()
            .mean()
        )
        assert shift < max_shift if max_shift else shift > 0.02


def test_too_few_images_and_invalid_settings_raise() -> None:
    with pytest.raises(DataError, match="at least 2"):
        fitted(cookies(1, SIZE))
    with pytest.raises(ConfigError, match="min_variation"):
        VariationModelConfig(min_variation=0.0)
