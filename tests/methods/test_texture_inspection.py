import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from metalad.methods.texture_inspection import TextureInspection, TextureInspectionConfig
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (40, 48)


def fitted(images: int = 6, **changes: object) -> TextureInspection:
    values = {"image_size": SIZE, "levels": 2, "components": 3, "samples": 1000} | changes
    model = TextureInspection(TextureInspectionConfig(**values))  # type: ignore[arg-type]
    model.fit(cookies(images, SIZE), 0)
    return model


def scikit_learn_mixture(model: TextureInspection, level: int) -> GaussianMixture:
    mixture = GaussianMixture(model.config.components)
    mixture.weights_, mixture.means_ = model.log_weight[level].exp().numpy(), model.mean[level].numpy()
    mixture.precisions_cholesky_ = model.whitening[level].mT.numpy()
    return mixture


def test_map_is_the_standardized_negative_log_likelihood_of_patches() -> None:
    """One level; the reference uses windows of a padded array and scikit-learn's mixture."""
    model = fitted(levels=1, normalization="none")
    image = cookies(7, SIZE)[6]
    grey = np.pad(image @ np.array([0.299, 0.587, 0.114]) / 255, 3, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(grey, (7, 7)).reshape(-1, 49)
    values = -scikit_learn_mixture(model, 0).score_samples(windows @ model.projection.double().numpy())
    standard = (values - float(model.level_mean[0])) / float(model.level_deviation[0])
    expected = np.log1p(np.exp(-np.abs(standard))) + np.maximum(standard, 0)
    anomaly_map = model.raw_map(model.residuals(to_batch(image[None])))[0]
    np.testing.assert_allclose(anomaly_map.flatten(), expected, rtol=1e-3, atol=1e-3)


def test_levels_are_standardized_on_an_image_not_used_for_the_mixtures() -> None:
    model, images = fitted(2), to_batch(cookies(2, SIZE))
    means = [[float(level.mean()) for level in model._negative_log_likelihood(image[None])] for image in images]
    training, held_out = sorted(means)
    np.testing.assert_allclose(model.level_mean, held_out, rtol=1e-4)
    assert abs(float(model.level_mean[0]) - training[0]) > 1e-2
    negative_log_likelihood = model._negative_log_likelihood(images[means.index(held_out)][None])
    np.testing.assert_allclose(
        model.level_deviation, [float(level.std()) for level in negative_log_likelihood], rtol=1e-3
    )


def test_each_level_has_half_the_size() -> None:
    model = fitted(levels=3)
    assert model.config.level_sizes == [(40, 48), (20, 24), (10, 12)]
    assert [len(points) for points in model.patches(torch.rand(1, 3, *SIZE))] == [1920, 480, 120]


def test_weber_patches_are_invariant_to_brightness_and_compress_contrast() -> None:
    model = fitted(normalization="weber")
    plain = fitted(normalization="none")
    image = to_batch(cookies(7, SIZE)[6:]) * 0.5
    for patches, brighter in zip(model.patches(image), model.patches(image + 0.3), strict=True):
        torch.testing.assert_close(patches, brighter, atol=1e-3, rtol=1e-3)
    for method, max_ratio in ((model, 1.6), (plain, 2.1)):
        finest = [next(iter(method.patches(scale * image))).std() for scale in (1.0, 2.0)]
        assert 1 < float(finest[1] / finest[0]) < max_ratio


def test_full_projection_is_orthonormal() -> None:
    model = fitted(channels=49)
    torch.testing.assert_close(model.projection.T @ model.projection, torch.eye(49), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": 0},
        {"levels": 5},
        {"patch": 4},
        {"channels": 50},
        {"channels": 0},
        {"samples": 2},
        {"mixture_images": 0},
    ],
)
def test_invalid_settings_raise(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        TextureInspectionConfig(**({"image_size": SIZE} | changes))  # type: ignore[arg-type]


def test_single_image_raises() -> None:
    with pytest.raises(DataError, match="at least 2"):
        TextureInspection(TextureInspectionConfig()).fit(np.zeros((1, 400, 400, 3), np.uint8), 0)
