import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metalad.detectors import out_of_fold
from metalad.detectors.base import SCORINGS
from metalad.detectors.density.appearance import reduced
from metalad.detectors.density.codebook import Selection
from metalad.detectors.density.log_distance import FLOOR, MIN_WEIGHT
from metalad.detectors.out_of_fold import calibrate
from metalad.detectors.residuals import Residuals
from metalad.methods.metal import Metal, MetalConfig, Token
from metalad.nn.attention import Mask
from metalad.nn.losses import ssim_map
from metalad.nn.pixels import Pixels, to_batch
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import from_texts
from tests.cookies import cookies

CONFIGURATIONS: tuple[tuple[Token, ...], ...] = (
    ("squares",),
    ("squares", "rows"),
    ("squares", "columns"),
    ("rows", "columns"),
    ("squares", "rows", "columns"),
)
"""Table 3 has six: it lists squares twice, without and with the mask."""


def small(
    tokens: tuple[Token, ...] = ("squares", "rows"), mask: Mask = "blind", depth: int = 1, reduction: int = 1
) -> Metal:
    """A model of 4 x 6 patches of 8 pixels of the reduced image."""
    torch.manual_seed(0)
    return Metal(
        MetalConfig(
            image_size=(32 * reduction, 48 * reduction),
            reduction=reduction,
            patch_size=8,
            width=8,
            hidden_width=16,
            smoothing_sigma=1.0,
            tokens=tokens,
            mask=mask,
            depth=depth,
        )
    )


def own_gradients(model: Metal, batch: int = 1) -> dict[tuple[int, int], Tensor]:
    """Gradient of each patch's output with respect to its own pixels, by grid position; no photometric part."""
    size, (down, across) = model.config.patch_size, model.config.grid
    full_size = size * model.config.reduction
    images = torch.rand(batch, 3, *model.config.image_size, requires_grad=True)
    reconstruction = model.reconstruct(reduced(images, model.config.reduction))
    weights = torch.randn(3, size, size)
    gradients = {}
    for row, column in itertools.product(range(down), range(across)):
        patch_slice, full_size_slice = (
            (..., slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            for side in (size, full_size)
        )
        (gradient,) = torch.autograd.grad((reconstruction[patch_slice] * weights).sum(), images, retain_graph=True)
        gradients[row, column] = gradient[full_size_slice]
    return gradients


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("tokens", CONFIGURATIONS, ids="+".join)
def test_output_of_a_patch_is_independent_of_its_pixels(tokens: tuple[Token, ...], depth: int) -> None:
    for position, gradient in own_gradients(small(tokens, depth=depth), batch=2).items():
        assert torch.count_nonzero(gradient) == 0, position


def test_output_of_a_patch_is_independent_of_its_pixels_at_full_size() -> None:
    for position, gradient in own_gradients(small(reduction=2)).items():
        assert gradient.shape[-2:] == (16, 16)
        assert torch.count_nonzero(gradient) == 0, position


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("mask", ["zero-logit", "none"])
@pytest.mark.parametrize("tokens", CONFIGURATIONS, ids="+".join)
def test_other_masks_leak(tokens: tuple[Token, ...], mask: Mask, depth: int) -> None:
    """`none` with only squares is the first of the six configurations."""
    for position, gradient in own_gradients(small(tokens, mask, depth)).items():
        assert gradient.abs().max() > 0, position


def test_output_of_a_patch_is_independent_of_its_pixels_with_default_settings() -> None:
    torch.manual_seed(0)
    for position, gradient in own_gradients(Metal(MetalConfig())).items():
        assert torch.count_nonzero(gradient) == 0, position


@pytest.mark.parametrize("tokens", CONFIGURATIONS, ids="+".join)
def test_output_of_a_patch_depends_on_all_unmasked_patches(tokens: tuple[Token, ...]) -> None:
    model = small(tokens)
    images = torch.rand(1, 3, 32, 48, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.reconstruct(images)[..., 8:16, 24:32].square().sum(), images)
    influence = gradient.abs().amax((0, 1)).reshape(4, 8, 6, 8).amax((1, 3)) > 0
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    other = {"squares": (rows != 1) | (columns != 3), "rows": rows != 1, "columns": columns != 3}
    assert torch.equal(influence, torch.stack([other[token] for token in tokens]).any(0))


@pytest.mark.parametrize(("depth", "parameters"), [(1, 17_859_840), (2, 26_392_192)])
def test_parameter_counts_match_table_6(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        model = Metal(MetalConfig(depth=depth, attention="anywhere"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


class Identity(nn.Module):
    """Replaces an encoder: returns the tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


@pytest.mark.parametrize("token", ["squares", "rows", "columns"])
def test_patches_are_restored_to_their_positions(token: Token) -> None:
    """With identity as encoder and decoder, the output must equal the input."""
    config = MetalConfig(
        image_size=(32, 48), reduction=1, patch_size=8, width=3 * 8 * 8, tokens=(token,), smoothing_sigma=1.0
    )
    model = Metal(config)
    model.encoders[token], model.decoder = Identity(), nn.Identity()  # type: ignore[assignment]
    images = torch.rand(2, 3, 32, 48)
    assert torch.equal(model.reconstruct(images), images)


@pytest.mark.parametrize("token", ["rows", "columns"])
def test_row_and_column_tokens_cover_whole_rows_and_columns(token: Token) -> None:
    model = small((token,))
    encoder_inputs: list[Tensor] = []
    model.encoders[token].register_forward_pre_hook(lambda _, inputs: encoder_inputs.append(inputs[0]))
    images = torch.zeros(1, 3, 32, 48)
    images[:, :, 8:16] = 1  # the second row of patches
    model.reconstruct(images)
    per_token = encoder_inputs[0][0].mean(1)
    assert per_token.tolist() == ([0, 1, 0, 0] if token == "rows" else pytest.approx([0.25] * 6))


def prepared(**changed: Any) -> tuple[Metal, Pixels]:
    pixels = cookies(6, (32, 48))
    model = Metal(dataclasses.replace(small().config, **changed))
    model.prepare("train", pixels, seed=0)
    return model, pixels


def test_zero_output_of_the_decoder_is_the_mean_image() -> None:
    model, pixels = prepared()
    last = model.decoder[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        target_image = model.target_image(to_batch(pixels))
        reconstruction = model.reconstruct(target_image)
    torch.testing.assert_close(reconstruction, target_image.mean(0).expand_as(reconstruction))


def test_pixel_scales_have_a_lower_bound() -> None:
    model, pixels = prepared()
    variance = model.target_image(to_batch(pixels)).numpy().astype(np.float64).var(0)
    np.testing.assert_allclose(model.scale, np.sqrt(variance + variance.mean() / 4), rtol=1e-3)
    assert model.scale.min() >= variance.mean() ** 0.5 / 2


def test_input_deviations_are_clipped() -> None:
    """Deviations of more than three scales are clipped."""
    model, pixels = prepared()
    images = to_batch(pixels[:1])
    with torch.no_grad():
        images[..., 8:16, 8:16] = model.mean[:, 8:16, 8:16] + 4 * model.scale[:, 8:16, 8:16]
        far = images.clone()
        far[..., 8:16, 8:16] = 100.0
        assert torch.equal(model.reconstruct(images), model.reconstruct(far))
        far[..., 8:16, 8:16] = -100.0
        assert not torch.equal(model.reconstruct(images), model.reconstruct(far))


def test_identical_training_images() -> None:
    model = small()
    same = cookies(1, (32, 48)).repeat(3, 0)
    model.prepare("train", same, seed=0)
    assert torch.equal(model.scale, torch.full((3, 32, 48), 1 / 255))
    assert torch.isfinite(model.loss(to_batch(same)))


@pytest.mark.parametrize("gain", [0.7, 1.3])
def test_residuals_are_invariant_to_brightness(gain: float) -> None:
    model, pixels = prepared(auxiliary_density="none")
    images = to_batch(pixels)
    with torch.no_grad():
        target_image, brighter = model.target_image(images), model.target_image(gain * images)
        torch.testing.assert_close(target_image, brighter, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.residuals(images).values, model.residuals(gain * images).values)
    assert not torch.equal(target_image, images)


def test_photometric_0_disables_normalization() -> None:
    model, pixels = prepared(photometric=0.0)
    assert model.photometric is None
    assert torch.equal(model.target_image(to_batch(pixels)), to_batch(pixels))


def test_target_pixels_disables_standardization() -> None:
    model, _ = prepared(target="pixels")
    assert torch.count_nonzero(model.mean) == 0
    assert torch.equal(model.scale, torch.ones(3, 32, 48))


@pytest.mark.parametrize("changed", [{}, {"attention": "anywhere"}, {"target": "pixels"}], ids=str)
def test_output_of_a_patch_is_independent_of_its_pixels_after_prepare(changed: dict[str, Any]) -> None:
    """The mean image depends on the training images only."""
    model, _ = prepared(**changed)
    for position, gradient in own_gradients(model).items():
        assert torch.count_nonzero(gradient) == 0, position


def test_only_training_images_are_augmented() -> None:
    model, images = small(), to_batch(cookies(4, (32, 48)))
    no_augmentation = dataclasses.replace(model.config, degrees=0.0, shift=0.0, photometric=0.0)
    with torch.no_grad():
        training_loss, evaluation_loss = model.train().loss(images), model.eval().loss(images)
        model.config = no_augmentation
        assert torch.equal(evaluation_loss, model.loss(images))
        assert torch.equal(evaluation_loss, model.train().loss(images))
    assert not torch.equal(training_loss, evaluation_loss)


def test_token_positions() -> None:
    config = small(("squares", "columns")).config
    assert config.positions("squares").tolist() == [[down, across] for down in range(4) for across in range(6)]
    assert config.positions("columns").tolist() == [[across] for across in range(6)]


def test_images_of_a_batch_are_independent() -> None:
    model, images = small(("squares", "rows", "columns")), torch.rand(3, 3, 32, 48)
    torch.testing.assert_close(model.reconstruct(images)[1:2], model.reconstruct(images[1:2]))


def test_raw_map_is_the_squared_error() -> None:
    model = Metal(dataclasses.replace(small().config, auxiliary_density="none"))
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        residuals = model.residuals(images)
        expected = ((model.reconstruct(images) - images) ** 2).sum(1)
    torch.testing.assert_close(model.raw_map(residuals), expected)
    assert residuals.reconstruction is not None
    assert 0 <= residuals.reconstruction.min() <= residuals.reconstruction.max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.sampled_from(CONFIGURATIONS))
def test_maps_have_the_image_size_for_any_grid(down: int, across: int, tokens: tuple[Token, ...]) -> None:
    config = MetalConfig(
        image_size=(down * 12, across * 12),
        reduction=1,
        patch_size=12,
        width=8,
        hidden_width=8,
        smoothing_sigma=1.0,
        tokens=tokens,
        auxiliary_density="none",
        guide="none",  # with a guided filter, the map's maximum may be below the score
    )
    with torch.no_grad():
        model, images = Metal(config), torch.rand(2, 3, *config.image_size)
        score, maps = model.predict(images, model.residuals(images), "raw")
    assert maps.shape == (2, *config.image_size)
    torch.testing.assert_close(score, maps.amax((1, 2)))


def test_absolute_error_sum_matches_eq_2() -> None:
    model = small().eval()
    model.config = dataclasses.replace(model.config, absolute_error="sum")
    images = torch.rand(2, 3, *model.config.image_size)
    reconstruction = model.reconstruct(images)
    per_image = (reconstruction - images).abs().sum((1, 2, 3))
    torch.testing.assert_close(model.loss(images), per_image.mean() - ssim_map(reconstruction, images).mean())


def test_paper_protocol_matches_section_4_2() -> None:
    (plan,) = Metal(MetalConfig()).plan("paper")
    assert (plan.learning_rate, plan.batch_size, plan.max_epochs) == (1e-4, 64, 3000)
    assert (plan.schedule, plan.patience, plan.patience_from) == ("constant", 50, 500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patch_size=15", "patch_size 15 does not divide the reduced image, 128x128"),
        ("reduction=3", "reduction 3 does not divide image_size 256x256"),
        ("reduction=0", "reduction 0"),
        ("patch_size=0", "patch_size 0"),
        ("patch_size=-16", "patch_size -16"),
        ("patch_size=128", "at least 2 tokens of each shape"),
        ("tokens=squares,squares", "at most once"),
        ("tokens=circles", "expected a comma-separated list"),
        ("tokens=", "expected a comma-separated list"),
        ("depth=0", "at least 1"),
        ("width=0", "at least 1"),
        ("shift=0.5", "shift between 0 and 0.5"),
        ("photometric=1", "must lie between 0 and 1"),
        ("heads=3", "heads 3 does not divide width 128"),
        ("mask=blnd", "did you mean blind"),
        ("image_size=8", "at least 16 pixels"),
        ("smoothing_sigma=-1", "between 0 and a quarter"),
        ("smoothing_sigma=64", "between 0 and a quarter"),
        ("smoothing_sigma=nan", "between 0 and a quarter"),
        ("image_score=total", "one of max, mean, top-k"),
    ],
)
def test_invalid_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_texts(MetalConfig, [text])


def test_single_row_of_patches_raises() -> None:
    with pytest.raises(ConfigError, match="at least 2 tokens of each shape"):
        MetalConfig(image_size=(16, 64), reduction=1, patch_size=16, smoothing_sigma=1.0)


def test_a_reduced_image_smaller_than_the_window_of_ssim_raises() -> None:
    with pytest.raises(ConfigError, match=r"reduced image, 10x32, is smaller than the window of SSIM, 11x11"):
        MetalConfig(image_size=(20, 64), reduction=2, patch_size=2, smoothing_sigma=1.0)
    MetalConfig(image_size=(22, 64), reduction=2, patch_size=1, smoothing_sigma=1.0)


def test_empty_tokens_raise() -> None:
    with pytest.raises(ConfigError, match="use each of squares, rows, columns"):
        MetalConfig(tokens=())


def with_auxiliary_density(selection: Selection = "coreset") -> tuple[Metal, Tensor]:
    """A calibrated model with random weights, and its images; the density is fitted on the first two thirds of them."""
    torch.manual_seed(0)
    model, pixels = Metal(dataclasses.replace(small().config, selection=selection)), cookies(12, (32, 48))
    model.conclude(pixels[:8], pixels[8:])
    calibrate(model, pixels[:8], pixels[8:])
    return model.eval(), to_batch(pixels)


@pytest.mark.parametrize("selection", ["coreset", "k-means"])
def test_calibrated_map_is_the_weighted_mean_normalized_log_distance(selection: Selection) -> None:
    """The NumPy reference uses the five distances, normalized by out-of-fold and held-out images."""
    model, images = with_auxiliary_density(selection)
    pixels = cookies(12, (32, 48))
    good_residuals = Residuals.concatenate((model.out_of_fold_residuals(pixels[:8]), model.residuals_of(pixels[8:])))

    def logs(residuals: Residuals) -> list[np.ndarray]:
        assert model.calibration is not None
        assert residuals.distances is not None
        with torch.no_grad():
            whitened = model.calibration.whiten(residuals).square()
        distances = [whitened[:, :3].mean(1), whitened[:, 3:].mean(1), *residuals.distances.unbind(1)]
        return [np.log(np.maximum(distance.numpy().astype(np.float64), 1e-6)) for distance in distances]

    with torch.no_grad():
        residuals = model.residuals(images)
        assert model.calibration is not None
        calibrated = model.calibration(residuals).numpy()
    normalized = []
    for log, good in zip(logs(residuals), logs(good_residuals), strict=True):
        ordered = np.sort(good[:, ::2, ::2].ravel())
        mean, quantile = ordered.mean(), ordered[math.ceil(0.99 * len(ordered)) - 1]
        normalized.append(np.maximum(log - mean, -FLOOR) / (quantile - mean))
    assert good_residuals.weights is not None
    weights = good_residuals.weights.mean(0).tolist()
    assert weights[:2] == pytest.approx(model.explained.tolist())
    names = ("transformer", "components", "position", "patch", "high_pass")
    assert residuals.weights is not None
    assert model.distance_weights == pytest.approx(dict(zip(names, residuals.weights[0].tolist(), strict=False)))
    assert weights[2] == 1
    assert weights[3] == 1 if selection == "k-means" else 0 < weights[3] < 0.9
    mean_log = np.average(normalized, axis=0, weights=np.maximum(weights, MIN_WEIGHT))
    np.testing.assert_allclose(calibrated, np.logaddexp(0, 4 * mean_log) / 4, rtol=1e-3, atol=1e-4)


def test_composition_counts_in_the_calibrated_image_score_only() -> None:
    """The map is the same with and without it, and the calibrated score is never lower."""
    model, images = with_auxiliary_density()
    with torch.no_grad():
        residuals = model.residuals(images)
        assert residuals.contribution is not None
        for scoring in SCORINGS:
            joined, alone = (
                model.predict(images, of, scoring) for of in (residuals, residuals._replace(contribution=None))
            )
            assert torch.equal(joined.anomaly_map, alone.anomaly_map)
            expected = alone.score if scoring == "raw" else torch.hypot(alone.score, residuals.contribution)
            torch.testing.assert_close(joined.score, expected)
    assert (residuals.contribution > 0).any()


def test_the_weight_of_a_reconstruction_is_the_variance_that_it_explains() -> None:
    model, images = with_auxiliary_density()
    with torch.no_grad():
        values = model.residuals(images[8:]).values
        deviations = model.target_image(images[8:]) - model.appearance.components.mean  # type: ignore[union-attr]
        expected = [1 - float(part.square().sum() / deviations.square().sum()) for part in values.chunk(2, 1)]
    assert model.explained.tolist() == pytest.approx(np.maximum(expected, 0), abs=1e-4)
    assert model.explained[1] > 0.1


def test_joint_residuals_are_one_distance_of_weight_1() -> None:
    joint = dataclasses.replace(small().config, reconstruction_errors="joint", high_pass=False, composition=False)
    model, pixels = Metal(joint), cookies(12, (32, 48))
    model.conclude(pixels[:8], pixels[8:])
    residuals = model.residuals_of(pixels)
    assert residuals.parts == 1
    assert residuals.contribution is None
    assert residuals.weights is not None
    assert residuals.weights.shape == (12, 3)
    assert (residuals.weights[:, :2] == 1).all()


def test_raw_map_is_independent_of_the_auxiliary_density() -> None:
    model, images = with_auxiliary_density()
    alone = Metal(dataclasses.replace(model.config, auxiliary_density="none"))
    alone.encoders, alone.decoder = model.encoders, model.decoder
    with torch.no_grad():
        one, other = (each.predict(images, each.residuals(images), "raw") for each in (model, alone))
    assert torch.equal(one.anomaly_map, other.anomaly_map)
    assert alone.residuals(images).distances is None


def test_without_auxiliary_density_the_calibrated_map_uses_residuals_only() -> None:
    torch.manual_seed(0)
    model, pixels = Metal(dataclasses.replace(small().config, auxiliary_density="none")), cookies(12, (32, 48))
    model.conclude(pixels[:8], pixels[8:])
    calibrate(model, pixels[:8], pixels[8:])
    assert model.calibration is not None
    assert model.calibration.log_distance is None
    with torch.no_grad():
        residuals = model.residuals(to_batch(pixels))
        torch.testing.assert_close(model.calibration(residuals), model.calibration.whiten(residuals).square().mean(1))


def test_auxiliary_density_is_not_fitted_on_held_out_images() -> None:
    model, images = with_auxiliary_density()
    assert model.appearance is not None
    with torch.no_grad():
        patches = model.appearance(images).distances[:, 1].amax((1, 2))
    assert patches[:8].max() < 1e-3 < patches[8:].min()


def test_training_scores_are_raised_only_without_auxiliary_density(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks: list[np.ndarray] = []
    original = out_of_fold._raised_to_held_out_level

    def recorded(scores: np.ndarray, new: np.ndarray) -> Tensor:
        masks.append(new)
        return original(scores, new)

    monkeypatch.setattr(out_of_fold, "_raised_to_held_out_level", recorded)
    with_auxiliary_density()
    model, pixels = Metal(dataclasses.replace(small().config, auxiliary_density="none")), cookies(12, (32, 48))
    model.conclude(pixels[:8], pixels[8:])
    calibrate(model, pixels[:8], pixels[8:])
    raised = [False] * 8 + [True] * 4
    assert [new.tolist() for new in masks] == [[True] * 12, raised, raised, raised]  # calibrated and raw


def test_out_of_fold_contributions_have_the_shrinkage_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a model of fewer images would be smaller than those of new images, and the threshold too low."""
    model, _ = with_auxiliary_density()
    shrinkages: list[float] = []
    original = Metal.residuals_of

    def recorded(self: Metal, pixels: Pixels) -> Residuals:
        assert self.appearance is not None
        assert self.appearance.composition is not None
        shrinkages.append(float(self.appearance.composition.score.shrinkage))
        return original(self, pixels)

    monkeypatch.setattr(Metal, "residuals_of", recorded)
    model.out_of_fold_residuals(cookies(12, (32, 48))[:8])
    assert shrinkages == [pytest.approx(8 / 108)] * 8


def test_out_of_fold_residuals_use_a_density_fitted_without_the_image() -> None:
    model, _ = with_auxiliary_density()
    pixels = cookies(12, (32, 48))[:8]
    auxiliary_density = model.appearance
    unseen, in_sample = model.out_of_fold_residuals(pixels), model.residuals_of(pixels)
    assert model.appearance is auxiliary_density
    torch.testing.assert_close(unseen.values[:, :3], in_sample.values[:, :3])  # independent of the density; same order
    assert unseen.distances is not None
    assert in_sample.distances is not None
    assert in_sample.distances[:, 1].amax((1, 2)).max() < 1e-3 < unseen.distances[:, 1].amax((1, 2)).min()
    assert unseen.values[:, 3:].square().mean() > in_sample.values[:, 3:].square().mean()
