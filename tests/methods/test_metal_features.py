import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metalad
from metalad.data.corruptions import brightness
from metalad.detectors.base import SCORINGS
from metalad.detectors.density import codebook, gaussian
from metalad.detectors.density.feature_densities import IMAGE_WEIGHTS, MAX_CORESET_POINTS, NAMES, Densities, Distances
from metalad.detectors.density.good_features import GoodFeatures, good_features
from metalad.detectors.density.log_distance import as_map
from metalad.detectors.out_of_fold import calibrate
from metalad.detectors.residuals import Residuals
from metalad.methods import metal_features
from metalad.methods.metal_features import MetalFeatures, MetalFeaturesConfig
from metalad.nn import backbone_tiles
from metalad.nn.pixels import to_batch
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (64, 96)


def fitted_out_of_fold(pixels: np.ndarray, seed: int = 0, **changes: object) -> tuple[MetalFeatures, Residuals]:
    """Return a fitted model, and the out-of-fold residuals of its images."""
    values = {"image_size": SIZE, "smoothing_sigma": 2.0, "codebook_size": 64, "context_steps": 20} | changes
    model = MetalFeatures(MetalFeaturesConfig(**values))  # type: ignore[arg-type]
    return model, model.fit(pixels, seed)


def fitted(images: int = 8, seed: int = 0, **changes: object) -> MetalFeatures:
    return fitted_out_of_fold(cookies(images, SIZE), seed, **changes)[0]


def test_features_are_standardized_over_the_good_images() -> None:
    model = fitted(copies=0)
    with torch.no_grad():
        fine, deep = model.features(to_batch(cookies(8, SIZE)))
    for maps in (fine, deep):
        values = maps.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)), rtol=0, atol=1e-3)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values)), rtol=1e-3, atol=1e-3)
    assert fine.shape == (8, 176, 8, 12)
    assert deep.shape == (8, 320, 2, 3)


def test_each_stride_has_the_same_weight_in_the_per_stride_codebook() -> None:
    weights = fitted().densities.stride_weights.flatten()
    sums = [float(part.square().sum()) for part in torch.split(weights, [24, 40, 112])]
    assert sums == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)


def test_perturbed_copies_reduce_the_effect_of_darker_light() -> None:
    """The score of a darkened good image rises less if perturbed copies were fitted on."""
    image = cookies(9, SIZE)[8]
    ratio = []
    for copies in (0, 2):
        model = fitted(copies=copies, photometric_normalization=False)
        with torch.no_grad():
            pair = model(to_batch(np.stack([image, brightness(image, -0.12)]))).score
        ratio.append(float(pair[1] / pair[0]))
    assert ratio[1] < ratio[0]


def test_photometric_normalization_removes_a_change_of_brightness() -> None:
    model, images = fitted(), to_batch(cookies(9, SIZE)[8:])
    with torch.no_grad():
        one, other = model(images), model(0.8 * images)
    torch.testing.assert_close(one.anomaly_map, other.anomaly_map, rtol=1e-3, atol=1e-3)


def test_the_densities_are_weighted_by_the_variance_that_position_explains() -> None:
    model = fitted(copies=2)
    with torch.no_grad():
        fine, _ = model.features(to_batch(cookies(8, SIZE)))
    values = fine[:, :24].numpy().astype(np.float64)
    explained = 1 - values.var(0).mean() / values.var((0, 2, 3)).mean()
    weight = explained**2
    assert model.density_weights.tolist() == pytest.approx([weight, 1 - weight, 0.5, weight], rel=1e-4)
    assert 0 < explained < 1


def test_codebooks_of_fine_features_divide_their_entries_by_weight() -> None:
    model = fitted(codebook_size=100, copies=0, context_steps=0)
    weight = float(model.density_weights[0])
    assert 0.1 < weight < 0.9
    codebooks = model.densities.per_stride, model.densities.per_channel
    assert [len(codebook.entries) for codebook in codebooks] == [round(100 * weight), 100 - round(100 * weight)]


@pytest.mark.parametrize(("share", "entries"), [(0.0, [10, 90]), (0.3, [30, 70]), (1.0, [90, 10])])
def test_each_codebook_of_fine_features_gets_at_least_a_tenth_of_the_entries(share: float, entries: list[int]) -> None:
    densities = Densities((4, 4, 4), (8, 12), codebook_size=100, selection="coreset", share=share)
    assert [densities.per_stride.count, densities.per_channel.count] == entries


def test_where_good_images_have_large_distances_a_part_is_subtracted() -> None:
    model, images = fitted(), to_batch(cookies(10, SIZE)[8:])
    assert model.positional_mean is not None
    assert float(model.positional_mean.excess.max()) > 0
    with torch.no_grad():
        distances = model.densities(model.features(images))
        log_distance = model.log_distance(distances.positions, model.density_weights)
        expected = as_map(F.interpolate((log_distance - model.positional_mean.excess)[:, None], SIZE, mode="bilinear"))
        assert torch.equal(model.residuals(images).values, expected)
    assert fitted(positional_mean=False).positional_mean is None


def test_without_copies_and_context_only_the_codebooks_are_random() -> None:
    """With fewer positions than codebook entries nothing is random."""
    one, other = (fitted(2, seed=seed, codebook_size=4096, copies=0, context_steps=0) for seed in (0, 1))
    images = to_batch(cookies(4, SIZE))
    with torch.no_grad():
        torch.testing.assert_close(one(images).anomaly_map, other(images).anomaly_map, rtol=1e-5, atol=1e-5)


def test_invalid_settings_and_a_single_image_are_refused() -> None:
    with pytest.raises(ConfigError, match="codebook_size"):
        MetalFeaturesConfig(codebook_size=0)
    with pytest.raises(ConfigError, match="copies"):
        MetalFeaturesConfig(copies=-1)
    with pytest.raises(ConfigError, match="context_steps"):
        MetalFeaturesConfig(context_steps=-1)
    with pytest.raises(ConfigError, match="context_components"):
        MetalFeaturesConfig(context_components=0)
    for sigma in (-1.0, float("nan"), 9.0):
        with pytest.raises(ConfigError, match="context_sigma"):
            MetalFeaturesConfig(context_sigma=sigma)
    with pytest.raises(DataError, match="at least 2"):
        fitted(1)


def test_out_of_fold_residuals_come_from_densities_fitted_without_the_image() -> None:
    pixels = cookies(8, SIZE)
    model, new = fitted_out_of_fold(pixels, codebook_size=4096, context_steps=0)
    descriptions = model.residuals_of(pixels)
    assert new.values.shape == descriptions.values.shape
    assert (model.image_scores(new, "raw") > model.image_scores(descriptions, "raw")).all()


def test_out_of_fold_residuals_keep_the_order_of_images() -> None:
    """An image of noise among the others has the highest score at its own index."""
    pixels = cookies(9, SIZE)
    pixels[6] = np.random.default_rng(0).integers(0, 255, pixels[6].shape)
    model, out_of_fold = fitted_out_of_fold(pixels)
    assert int(model.image_scores(out_of_fold, "raw").argmax()) == 6


def test_out_of_fold_residuals_are_those_of_evenly_spaced_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 9 images, 7 are held, and 3 are scored: the first, the middle one, which is noise, and the last."""
    monkeypatch.setattr(metal_features, "MAX_PIXELS", 7 * 2 * SIZE[0] * SIZE[1])
    monkeypatch.setattr(metal_features, "MAX_OUT_OF_FOLD", 3)
    pixels = cookies(9, SIZE)
    pixels[4] = np.random.default_rng(0).integers(0, 255, pixels[4].shape)
    model, out_of_fold = fitted_out_of_fold(pixels)
    scores = model.image_scores(out_of_fold, "raw")
    assert len(scores) == 3
    assert int(scores.argmax()) == 1


def test_a_scale_does_not_depend_on_copies_of_images() -> None:
    """Each image twice: the copies are in the same half, and the scales are those of the images once."""
    pixels = cookies(8, SIZE)
    once, twice = (
        fitted_out_of_fold(images, copies=0, context_steps=0, selection="k-means")[0].log_distance.scale
        for images in (pixels, pixels[[0, 1, 0, 2, 3, 1, 4, 2, 5, 3, 6, 4, 7, 5, 6, 7]])
    )
    torch.testing.assert_close(twice, once, rtol=0.3, atol=0)


def test_both_scorings_are_the_normalized_log_distance() -> None:
    model = fitted(context_steps=0)
    calibrate(model, cookies(8, SIZE), cookies(10, SIZE)[8:])
    assert model.calibration is None
    with torch.no_grad():
        images = to_batch(cookies(2, SIZE))
        residuals = model.residuals(images)
        calibrated, raw = (model.predict(images, residuals, scoring) for scoring in SCORINGS)
    assert torch.equal(raw.score, calibrated.score)
    assert torch.equal(raw.anomaly_map, model.smoothing(residuals.values[:, 0]))
    assert model.threshold(0.01, "raw") == model.threshold(0.01, "calibrated")


def test_the_score_joins_the_maps_maximum_and_the_composition() -> None:
    """The score is never below the map's maximum, so an image that passes has no pixel above the threshold."""
    model, images = fitted(), to_batch(cookies(10, SIZE)[8:])
    images[1] = images[1].flip(1)
    with torch.no_grad():
        residuals = model.residuals(images)
        prediction = model.predict(images, residuals, "calibrated")
    assert residuals.contribution is not None
    largest = model.smoothing(residuals.values[:, 0]).amax((1, 2))
    torch.testing.assert_close(prediction.score, (largest.square() + residuals.contribution.square()).sqrt())
    assert (residuals.contribution > 0).all()
    assert (prediction.anomaly_map.amax((1, 2)) < prediction.score).all()


def test_without_composition_maps_are_equal_and_the_score_is_the_maximum() -> None:
    images = to_batch(cookies(9, SIZE)[8:])
    with_it, without = (fitted(composition=composition, context_steps=0) for composition in (True, False))
    with torch.no_grad():
        residuals = without.residuals(images)
        one, other = with_it(images), without.predict(images, residuals, "calibrated")
    assert torch.equal(one.anomaly_map, other.anomaly_map)
    assert residuals.contribution is None
    assert torch.equal(other.score, without.smoothing(residuals.values[:, 0]).amax((1, 2)))
    assert one.score > other.score


def test_the_subspace_is_fitted_on_images_and_turned_copies_and_counts_where_images_do_not_differ_in_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gaussian, "FULL_VARIATION", 1e9)
    pixels = cookies(8, SIZE)
    model = fitted(context_steps=0)
    assert model.composition_score is not None
    assert model.densities.subspace is not None
    assert model.composition_score.weights.tolist() == pytest.approx(IMAGE_WEIGHTS)
    with torch.no_grad():
        standardizations = Standardization(176), Standardization(320)
        good = good_features(pixels, 1, True, 0, model._maps, standardizations, model.device)
        rest = good.features.fine[torch.cat(good.for_subspace(good.with_perturbed))]
        vectors = rest.permute(0, 2, 3, 1).flatten(0, 2).double()
    assert len(rest) == 16
    centered = vectors - vectors.mean(0)
    residual = (centered @ model.densities.subspace.complement.double()).square().sum() / centered.square().sum()
    assert 0.008 < float(residual) <= 0.01 * (1 + 1e-3)


def test_densities_do_not_depend_on_an_image_that_is_left_out_nor_on_its_copies() -> None:
    """NaN in its features, in those of its perturbed copy and of its turned one, changes no tensor."""
    pixels, model, left_out = cookies(6, SIZE), fitted(6, context_steps=0), 2
    with torch.no_grad():
        good = good_features(
            pixels, 1, True, 0, model._maps, (Standardization(176), Standardization(320)), model.device
        )
        others = good.with_perturbed[good.with_perturbed % 6 != left_out]
        expected = model._fitted_densities(good, others, 0).state_dict()
        turned = 12 + good.turned.tolist().index(left_out)
        for kind in good.features:
            kind[[left_out, 6 + left_out, turned]] = torch.nan
        found = model._fitted_densities(good, others, 0).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_without_composition_there_are_no_turned_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def recorded(*arguments: object) -> GoodFeatures:
        asked.append(bool(arguments[2]))
        return good_features(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(metal_features, "good_features", recorded)
    for changes in ({}, {"composition": False}, {"copies": 0}):
        fitted(3, context_steps=0, **changes)
    assert asked == [True, False, False]


@pytest.mark.usefixtures("always_with_context")
def test_where_images_differ_in_level_the_subspace_does_not_count() -> None:
    model = fitted(context_steps=0)
    assert model.composition_score is not None
    assert model.composition_score.weights.tolist() == pytest.approx([*IMAGE_WEIGHTS[:-1], 0.0])


def test_the_composition_is_fitted_without_the_images_that_it_scores_out_of_fold() -> None:
    pixels = cookies(8, SIZE)
    model, residuals = fitted_out_of_fold(pixels, context_steps=0)
    out_of_fold, in_sample = residuals.contribution, model.residuals_of(pixels).contribution
    assert out_of_fold is not None
    assert in_sample is not None
    assert (out_of_fold > in_sample).sum() >= 5
    assert in_sample.max() == 0  # the subspace contains the images and their copies


def test_scores_and_maps_of_a_large_image_in_tiles_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (200, 328)
    model = MetalFeatures(MetalFeaturesConfig(image_size=size, smoothing_sigma=2.0, codebook_size=64))
    model.fit(cookies(3, size), 0)
    image = to_batch(cookies(4, size)[3:])
    with torch.no_grad():
        whole = model(image)
        parts: list[None] = []
        model.backbone.network.get_submodule("conv_stem").register_forward_pre_hook(lambda *_: parts.append(None))
        monkeypatch.setattr(backbone_tiles, "WHOLE", 32 * 32)
        monkeypatch.setattr(backbone_tiles, "TILE", 64)
        monkeypatch.setattr(backbone_tiles, "MAP_TILE", 8)
        monkeypatch.setattr(codebook, "POSITIONS_AT_ONCE", 100)
        tiled = model(image)
    torch.testing.assert_close(tiled.score, whole.score, rtol=1e-5, atol=0)
    torch.testing.assert_close(tiled.anomaly_map, whole.anomaly_map, rtol=0, atol=1e-5)
    assert len(parts) == 4 * 6


MEASURE_MEMORY = """
import numpy as np
from metalad.detectors.density import gaussian
from metalad.methods.metal_features import MetalFeatures, MetalFeaturesConfig
from metalad.pipelines.benchmark.machine import peak_memory
from tests.cookies import cookies

gaussian.FULL_VARIATION = 1e-9

def peak(images):
    config = MetalFeaturesConfig(
        image_size=(128, 128), smoothing_sigma=2.0, codebook_size=16, copies=0, context_steps=5
    )
    MetalFeatures(config).fit(images, 0)
    return peak_memory()

images = cookies(20, (128, 128))
few = peak(images)
print(peak(np.concatenate([images ^ number for number in range(40)])) - few)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_fitting_holds_the_features_of_all_images_once() -> None:
    """Images, residuals, vectors of the composition and pooled features take up to 1.7 times as much again.

    The sample has a fixed size. A second copy of the features would exceed the limit.
    """
    features = 800 * 4 * (16 * 16 * 176 + 4 * 4 * 320)
    sample = MAX_CORESET_POINTS * 4 * 176
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", MEASURE_MEMORY], cwd=root, capture_output=True, check=True)
    assert features < int(output.stdout) - sample < 2.9 * features


# Context prediction


@pytest.fixture
def always_with_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give context prediction the weight 1 on any images."""
    monkeypatch.setattr(gaussian, "FULL_VARIATION", 1e-9)


@pytest.mark.usefixtures("always_with_context")
def test_context_prediction_changes_neither_scores_nor_thresholds_but_the_map() -> None:
    """It localizes; the score and its threshold come from the other densities, bit for bit."""
    images = to_batch(cookies(10, SIZE)[8:])
    pixels = cookies(8, SIZE)
    (with_it, _), (without, _) = both = [fitted_out_of_fold(pixels, context_steps=steps) for steps in (20, 0)]
    for model, out_of_fold in both:
        calibrate(model, pixels, cookies(10, SIZE)[8:], out_of_fold)
    assert float(with_it.context_weight) == 1
    assert with_it.densities.context is not None
    assert without.densities.context is None
    for scoring in SCORINGS:
        one, other = (model.predict(images, model.residuals(images), scoring) for model in (with_it, without))
        assert torch.equal(one.score, other.score)
        assert not torch.equal(one.anomaly_map, other.anomaly_map)
        assert with_it.threshold(0.05, scoring) == without.threshold(0.05, scoring)


@pytest.mark.usefixtures("always_with_context")
def test_no_pixel_exceeds_the_score_of_an_image() -> None:
    model, images = fitted(composition=False), to_batch(cookies(12, SIZE)[8:])
    with torch.no_grad():
        for scoring in SCORINGS:
            prediction = model.predict(images, model.residuals(images), scoring)
            assert (prediction.anomaly_map.amax((1, 2)) <= prediction.score).all()


@pytest.mark.usefixtures("always_with_context")
def test_the_localizing_map_is_the_weighted_mean_with_context_prediction() -> None:
    model, images = fitted(positional_mean=False), to_batch(cookies(10, SIZE)[8:])
    with torch.no_grad():
        distances = model.densities(model.features(images))
        assert distances.context is not None
        own = torch.stack(model.log_distance.normalized(distances.positions))
        context = (distances.context.log() - model.context_log_distance.mean) / model.context_log_distance.scale
        weights = torch.cat([model.density_weights, torch.ones(1)])[:, None, None, None]
        joined = (torch.cat([own, context[None]]) * weights).sum(0) / weights.sum()
        expected = as_map(F.interpolate(model.context_scale * joined[:, None], SIZE, mode="bilinear"))[:, 0]
        localization = model.residuals(images).localization
    assert localization is not None
    torch.testing.assert_close(localization, expected, rtol=1e-4, atol=1e-5)
    assert 0.3 < float(model.context_scale) < 3


@pytest.mark.usefixtures("always_with_context")
def test_context_prediction_can_count_in_the_score() -> None:
    images = to_batch(cookies(10, SIZE)[8:])
    pixels = cookies(8, SIZE)
    (in_score, new), (in_map, others) = (
        fitted_out_of_fold(pixels, context_in_score=counts, positional_mean=False) for counts in (True, False)
    )
    residuals = in_score.residuals(images)
    assert residuals.localization is None
    torch.testing.assert_close(residuals.values[:, 0], in_map.residuals(images).localization)
    assert new.localization is None
    assert not torch.equal(new.values, others.values)


@pytest.mark.parametrize(("between", "expected"), [(0.0, 0.0), (0.07, 0.0), (0.1, (0.1 / 0.125) ** 4), (0.3, 1.0)])
def test_the_weight_of_context_prediction_follows_the_variance_between_images(between: float, expected: float) -> None:
    """Distances whose logarithm has the given fraction of its variance between images, the rest within them."""
    model, images = MetalFeatures(MetalFeaturesConfig(image_size=SIZE)), 40
    model.density_weights = torch.tensor([0.3, 0.7, 0.5, 0.3])
    within = torch.linspace(-1, 1, 96).reshape(8, 12)
    levels = torch.linspace(-1, 1, images)
    within, levels = (values / values.std(correction=0) for values in (within, levels))
    distances = ((1 - between) ** 0.5 * within + between**0.5 * levels[:, None, None]).exp()
    held_out = Distances([distances] * 4)
    model.log_distance.fit(held_out.positions)
    weight = model._context_weight(model._variation_of_level(held_out), images)
    assert float(weight) == pytest.approx(expected, rel=1e-4)


def test_without_variance_between_images_there_is_no_context_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal_features, "MIN_CONTEXT", 2.0)
    model = fitted(context_steps=20)
    assert float(model.context_weight) == 0
    assert model.densities.context is None
    assert model.residuals(to_batch(cookies(1, SIZE))).localization is None


@pytest.mark.usefixtures("always_with_context")
@pytest.mark.parametrize(("steps", "context"), [(0, 0.0), (5, 1.0)])
def test_the_log_states_the_weights_of_the_distances(
    caplog: pytest.LogCaptureFixture, steps: int, context: float
) -> None:
    caplog.set_level("INFO")
    config = MetalFeaturesConfig(image_size=SIZE, smoothing_sigma=2.0, codebook_size=64, context_steps=steps)
    metalad.fit(list(cookies(8, SIZE)), method=config)
    match = re.search(r"weights of the distances: ({.*})", caplog.text)
    assert match is not None
    weights = json.loads(match[1])
    assert list(weights) == [*NAMES, "context"]
    assert 0 < weights["per_stride"] == weights["position"] == pytest.approx(1 - weights["per_channel"], abs=2e-4)
    assert (weights["deep"], weights["context"]) == (0.5, context)


def test_images_too_small_for_context_prediction_have_none() -> None:
    """All positions would be masked in every prediction."""
    assert not MetalFeaturesConfig(image_size=(48, 48), smoothing_sigma=1.0).predicts_context
    assert MetalFeaturesConfig(image_size=(16, 56), smoothing_sigma=1.0).predicts_context
    assert not MetalFeaturesConfig(image_size=(16, 56), smoothing_sigma=1.0, context_steps=0).predicts_context


@pytest.mark.usefixtures("always_with_context")
def test_a_saved_model_has_the_same_context_prediction(tmp_path: Path) -> None:
    for steps in (0, 20):
        config = MetalFeaturesConfig(image_size=SIZE, smoothing_sigma=2.0, codebook_size=64, context_steps=steps)
        model = metalad.fit(list(cookies(8, SIZE)), method=config)
        again = metalad.load(model.save(tmp_path / f"{steps}.safetensors"))
        image = cookies(9, SIZE)[8]
        assert np.array_equal(again.predict(image).anomaly_map, model.predict(image).anomaly_map)


@pytest.mark.usefixtures("always_with_context")
def test_an_exported_model_has_the_same_context_prediction(tmp_path: Path) -> None:
    config = MetalFeaturesConfig(image_size=SIZE, smoothing_sigma=2.0, codebook_size=64, context_steps=20)
    model = metalad.fit(list(cookies(8, SIZE)), method=config)
    exported = metalad.load(metalad.export(model, tmp_path / "model.onnx").path)
    image = cookies(9, SIZE)[8]
    expected, found = model.predict(image), exported.predict(image)
    assert found.score == pytest.approx(expected.score, rel=1e-4)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-4 * expected.score)


@pytest.mark.usefixtures("always_with_context")
def test_context_prediction_is_trained_in_inference_mode_too() -> None:
    with torch.inference_mode():
        model = fitted()
    assert torch.equal(model.densities.context.directions, fitted().densities.context.directions)  # type: ignore[union-attr]


@pytest.mark.usefixtures("always_with_context")
def test_few_images_have_no_context_prediction() -> None:
    assert fitted(metal_features.MIN_CONTEXT_IMAGES - 1).densities.context is None
    assert fitted(metal_features.MIN_CONTEXT_IMAGES).densities.context is not None


@pytest.mark.usefixtures("always_with_context")
def test_a_state_dict_without_a_context_prediction_that_has_a_weight_is_refused() -> None:
    model = fitted()
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("densities.context.")}
    with pytest.raises(RuntimeError, match=r"densities\.context"):
        copy.deepcopy(model).load_state_dict(tensors)
