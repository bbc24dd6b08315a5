import numpy as np
import pytest
import torch

from metalad.data.corruptions import brightness
from metalad.detectors.base import SCORINGS
from metalad.detectors.out_of_fold import calibrate
from metalad.methods.metal_features import MetalFeatures, MetalFeaturesConfig
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (64, 96)


def fitted(images: int = 8, seed: int = 0, **changes: object) -> MetalFeatures:
    values = {"image_size": SIZE, "smoothing_sigma": 2.0, "codebook_size": 64, "context_steps": 20} | changes
    model = MetalFeatures(MetalFeaturesConfig(**values))  # type: ignore[arg-type]
    model.fit(cookies(images, SIZE), seed)
    return model


def test_features_are_standardised_over_the_good_images() -> None:
    model = fitted(copies=0)
    with torch.no_grad():
        fine, deep = model.describe(to_batch(cookies(8, SIZE)))
    for maps in (fine, deep):
        values = maps.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)), rtol=0, atol=1e-3)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values)), rtol=1e-3, atol=1e-3)
    assert fine.shape == (8, 176, 8, 12)
    assert deep.shape == (8, 320, 2, 3)


def test_each_tap_has_the_same_say_in_the_even_codebook() -> None:
    shares = fitted().densities.stride_weights.flatten()
    sums = [float(part.square().sum()) for part in torch.split(shares, [24, 40, 112])]
    assert sums == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)


def test_copies_spare_a_drift_of_the_light() -> None:
    """The same good image, darker: what it is worse by must shrink where drifted copies were learnt from."""
    image = cookies(9, SIZE)[8]
    worse = []
    for copies in (0, 2):
        model = fitted(copies=copies, photometric_normalization=False)
        with torch.no_grad():
            pair = model(to_batch(np.stack([image, brightness(image, -0.12)]))).score
        worse.append(float(pair[1] / pair[0]))
    assert worse[1] < worse[0]


def test_another_light_is_no_news() -> None:
    model, images = fitted(), to_batch(cookies(9, SIZE)[8:])
    with torch.no_grad():
        one, other = model(images), model(0.8 * images)
    torch.testing.assert_close(one.anomaly_map, other.anomaly_map, rtol=1e-3, atol=1e-3)


def test_the_law_of_places_has_the_say_that_places_have_in_the_features() -> None:
    model = fitted(copies=2)
    with torch.no_grad():
        fine, _ = model.describe(to_batch(cookies(8, SIZE)))
    values = fine[:, :24].numpy().astype(np.float64)
    explained = 1 - values.var(0).mean() / values.var((0, 2, 3)).mean()
    assert model.density_weights.tolist() == pytest.approx([0.5, 1, 1, 0.5, explained**2], rel=1e-4)
    assert fitted(context_steps=0).density_weights[:3].tolist() == [1, 1, 1]
    assert 0 < explained < 1


def test_without_copies_and_steps_chance_is_the_codebooks_alone() -> None:
    """Fewer places than words: no chance is left, and no seed changes a bit."""
    one, other = (fitted(2, seed=seed, codebook_size=1024, copies=0, context_steps=0) for seed in (0, 1))
    images = to_batch(cookies(4, SIZE))
    with torch.no_grad():
        torch.testing.assert_close(one(images).anomaly_map, other(images).anomaly_map, rtol=1e-5, atol=1e-5)


def test_impossible_settings_and_one_image_are_refused() -> None:
    with pytest.raises(ConfigError, match="codebook_size"):
        MetalFeaturesConfig(codebook_size=0)
    with pytest.raises(ConfigError, match="copies"):
        MetalFeaturesConfig(copies=-1)
    with pytest.raises(ConfigError, match="context_steps"):
        MetalFeaturesConfig(context_steps=-1)
    with pytest.raises(ConfigError, match="56 for one side"):
        MetalFeaturesConfig(image_size=(48, 48), smoothing_sigma=1.0, context_steps=1)
    assert MetalFeaturesConfig(image_size=(16, 56), smoothing_sigma=1.0, context_steps=1).grid == (2, 7)
    with pytest.raises(DataError, match="at least 2"):
        fitted(1)


def test_as_new_an_image_is_met_by_densities_that_did_not_learn_from_it() -> None:
    model, pixels = fitted(codebook_size=4096, context_steps=0), cookies(8, SIZE)
    densities = model.densities
    new, descriptions = model.out_of_fold_residuals(pixels), model.residuals_of(pixels)
    assert model.densities is densities
    assert new.values.shape == descriptions.values.shape
    assert (model.scores(new, "raw") > model.scores(descriptions, "raw")).all()


def test_as_new_images_keep_their_order() -> None:
    """A ninth image that is none of the others' kind scores highest in its own place."""
    pixels = cookies(9, SIZE)
    pixels[6] = np.random.default_rng(0).integers(0, 255, pixels[6].shape)
    model = MetalFeatures(MetalFeaturesConfig(image_size=SIZE, smoothing_sigma=2.0, codebook_size=64))
    model.fit(pixels, 0)
    assert int(model.scores(model.out_of_fold_residuals(pixels), "raw").argmax()) == 6


def test_both_scorings_are_the_surprise() -> None:
    model = fitted()
    calibrate(model, cookies(8, SIZE), cookies(10, SIZE)[8:])
    assert model.calibration is not None
    with torch.no_grad():
        images = to_batch(cookies(2, SIZE))
        residuals = model.residuals(images)
        calibrated, raw = (model.judge(images, residuals, scoring) for scoring in SCORINGS)
    assert torch.equal(raw.score, calibrated.score)
    assert torch.equal(raw.anomaly_map, model.smoothing(residuals.values[:, 0]))
    assert model.threshold(0.01, "raw") == model.threshold(0.01, "calibrated")
