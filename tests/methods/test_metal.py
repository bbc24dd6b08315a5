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

from metalad.detectors import out_of_fold as room
from metalad.detectors.density.appearance import reduced
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
"""Of Table 3, which counts squares twice: without the mask, and with it."""


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
    """The gradient of each patch's output to its own pixels, by the patch's place; of images in the usual light."""
    size, (down, across) = model.config.patch_size, model.config.grid
    whole = size * model.config.reduction
    images = torch.rand(batch, 3, *model.config.image_size, requires_grad=True)
    rebuilt = model.reconstruct(reduced(images, model.config.reduction))
    weights = torch.randn(3, size, size)
    found = {}
    for row, column in itertools.product(range(down), range(across)):
        own, below = (
            (..., slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            for side in (size, whole)
        )
        (gradient,) = torch.autograd.grad((rebuilt[own] * weights).sum(), images, retain_graph=True)
        found[row, column] = gradient[below]
    return found


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("tokens", CONFIGURATIONS, ids="+".join)
def test_no_patch_is_rebuilt_from_its_own_pixels(tokens: tuple[Token, ...], depth: int) -> None:
    for place, gradient in own_gradients(small(tokens, depth=depth), batch=2).items():
        assert torch.count_nonzero(gradient) == 0, place


def test_no_patch_is_rebuilt_from_its_own_pixels_of_the_larger_image() -> None:
    for place, gradient in own_gradients(small(reduction=2)).items():
        assert gradient.shape[-2:] == (16, 16)
        assert torch.count_nonzero(gradient) == 0, place


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("mask", ["zero-logit", "none"])
@pytest.mark.parametrize("tokens", CONFIGURATIONS, ids="+".join)
def test_the_other_masks_leak(tokens: tuple[Token, ...], mask: Mask, depth: int) -> None:
    """`none` with squares alone is the first of the six configurations."""
    for place, gradient in own_gradients(small(tokens, mask, depth)).items():
        assert gradient.abs().max() > 0, place


def test_no_patch_of_the_papers_model_is_rebuilt_from_its_own_pixels() -> None:
    torch.manual_seed(0)
    for place, gradient in own_gradients(Metal(MetalConfig())).items():
        assert torch.count_nonzero(gradient) == 0, place


@pytest.mark.parametrize("tokens", CONFIGURATIONS, ids="+".join)
def test_a_patch_is_rebuilt_from_every_patch_that_its_tokens_may_see(tokens: tuple[Token, ...]) -> None:
    model = small(tokens)
    images = torch.rand(1, 3, 32, 48, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.reconstruct(images)[..., 8:16, 24:32].square().sum(), images)
    target_image = gradient.abs().amax((0, 1)).reshape(4, 8, 6, 8).amax((1, 3)) > 0
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    other = {"squares": (rows != 1) | (columns != 3), "rows": rows != 1, "columns": columns != 3}
    assert torch.equal(target_image, torch.stack([other[token] for token in tokens]).any(0))


@pytest.mark.parametrize(("depth", "parameters"), [(1, 17_859_840), (2, 26_392_192)])
def test_the_size_is_table_6s(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        model = Metal(MetalConfig(depth=depth, attention="anywhere"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


class Known(nn.Module):
    """Stands for an encoder: gives each token what it was given, cut to the width wanted."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


@pytest.mark.parametrize("token", ["squares", "rows", "columns"])
def test_patches_come_back_to_their_places(token: Token) -> None:
    """With an encoder and a decoder that change nothing, every pixel must return to where it was."""
    config = MetalConfig(
        image_size=(32, 48), reduction=1, patch_size=8, width=3 * 8 * 8, tokens=(token,), smoothing_sigma=1.0
    )
    model = Metal(config)
    model.encoders[token], model.decoder = Known(), nn.Identity()  # type: ignore[assignment]
    images = torch.rand(2, 3, 32, 48)
    assert torch.equal(model.reconstruct(images), images)


@pytest.mark.parametrize("token", ["rows", "columns"])
def test_a_stripe_is_a_whole_row_or_column_of_pixels(token: Token) -> None:
    model = small((token,))
    target_image: list[Tensor] = []
    model.encoders[token].register_forward_pre_hook(lambda _, inputs: target_image.append(inputs[0]))
    images = torch.zeros(1, 3, 32, 48)
    images[:, :, 8:16] = 1  # the second row of patches
    model.reconstruct(images)
    per_token = target_image[0][0].mean(1)
    assert per_token.tolist() == ([0, 1, 0, 0] if token == "rows" else pytest.approx([0.25] * 6))


def prepared(**changed: Any) -> tuple[Metal, Pixels]:
    pixels = cookies(6, (32, 48))
    model = Metal(dataclasses.replace(small().config, **changed))
    model.prepare("train", pixels, seed=0)
    return model, pixels


def test_the_descent_starts_from_the_mean_good_image() -> None:
    model, pixels = prepared()
    last = model.decoder[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        target_image = model.target_image(to_batch(pixels))
        rebuilt = model.reconstruct(target_image)
    torch.testing.assert_close(rebuilt, target_image.mean(0).expand_as(rebuilt))


def test_no_pixels_unit_is_far_below_that_of_all() -> None:
    model, pixels = prepared()
    variance = model.target_image(to_batch(pixels)).numpy().astype(np.float64).var(0)
    np.testing.assert_allclose(model.scale, np.sqrt(variance + variance.mean() / 4), rtol=1e-3)
    assert model.scale.min() >= variance.mean() ** 0.5 / 2


def test_an_anomaly_spoils_what_is_rebuilt_from_it_no_more_than_any_other() -> None:
    """Beyond three units of the usual deviation a patch says no more, however far it is off."""
    model, pixels = prepared()
    images = to_batch(pixels[:1])
    with torch.no_grad():
        images[..., 8:16, 8:16] = model.mean[:, 8:16, 8:16] + 4 * model.scale[:, 8:16, 8:16]
        far = images.clone()
        far[..., 8:16, 8:16] = 100.0
        assert torch.equal(model.reconstruct(images), model.reconstruct(far))
        far[..., 8:16, 8:16] = -100.0
        assert not torch.equal(model.reconstruct(images), model.reconstruct(far))


def test_images_that_are_all_the_same_are_no_hindrance() -> None:
    model = small()
    same = cookies(1, (32, 48)).repeat(3, 0)
    model.prepare("train", same, seed=0)
    assert torch.equal(model.scale, torch.full((3, 32, 48), 1 / 255))
    assert torch.isfinite(model.loss(to_batch(same)))


@pytest.mark.parametrize("gain", [0.7, 1.3])
def test_another_light_is_no_news(gain: float) -> None:
    model, pixels = prepared()
    images = to_batch(pixels)
    with torch.no_grad():
        target_image, lit = model.target_image(images), model.target_image(gain * images)
        torch.testing.assert_close(target_image, lit, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.residuals(images).values, model.residuals(gain * images).values)
    assert not torch.equal(target_image, images)


def test_the_paper_takes_the_light_as_it_is() -> None:
    model, pixels = prepared(photometric=0.0)
    assert model.photometric is None
    assert torch.equal(model.target_image(to_batch(pixels)), to_batch(pixels))


def test_the_papers_target_is_the_pixels_themselves() -> None:
    model, _ = prepared(target="pixels")
    assert torch.count_nonzero(model.mean) == 0
    assert torch.equal(model.scale, torch.ones(3, 32, 48))


@pytest.mark.parametrize("changed", [{}, {"attention": "anywhere"}, {"target": "pixels"}], ids=str)
def test_no_patch_is_rebuilt_from_its_own_pixels_once_prepared(changed: dict[str, Any]) -> None:
    """The mean image knows the good images, and nothing of the one that is rebuilt."""
    model, _ = prepared(**changed)
    for place, gradient in own_gradients(model).items():
        assert torch.count_nonzero(gradient) == 0, place


def test_training_images_are_turned_and_moved_and_others_are_not() -> None:
    model, images = small(), to_batch(cookies(4, (32, 48)))
    still = dataclasses.replace(model.config, degrees=0.0, shift=0.0, photometric=0.0)
    with torch.no_grad():
        learning, judging = model.train().loss(images), model.eval().loss(images)
        model.config = still
        assert torch.equal(judging, model.loss(images))
        assert torch.equal(judging, model.train().loss(images))
    assert not torch.equal(learning, judging)


def test_squares_lie_on_a_grid_and_stripes_on_a_line() -> None:
    config = small(("squares", "columns")).config
    assert config.places("squares").tolist() == [[down, across] for down in range(4) for across in range(6)]
    assert config.places("columns").tolist() == [[across] for across in range(6)]


def test_images_of_a_batch_do_not_mix() -> None:
    model, images = small(("squares", "rows", "columns")), torch.rand(3, 3, 32, 48)
    torch.testing.assert_close(model.reconstruct(images)[1:2], model.reconstruct(images[1:2]))


def test_the_raw_map_is_the_papers_squared_error() -> None:
    model, images = small(), torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        residuals = model.residuals(images)
        expected = ((model.reconstruct(images) - images) ** 2).sum(1)
    torch.testing.assert_close(model.raw_map(residuals), expected)
    assert residuals.expected is not None
    assert 0 <= residuals.expected.min() <= residuals.expected.max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.sampled_from(CONFIGURATIONS))
def test_any_grid_of_patches_will_do(down: int, across: int, tokens: tuple[Token, ...]) -> None:
    config = MetalConfig(
        image_size=(down * 12, across * 12),
        reduction=1,
        patch_size=12,
        width=8,
        hidden_width=8,
        smoothing_sigma=1.0,
        tokens=tokens,
        guide="none",  # with outlines a map may stay below the score
    )
    with torch.no_grad():
        score, maps = Metal(config)(torch.rand(2, 3, *config.image_size))
    assert maps.shape == (2, *config.image_size)
    torch.testing.assert_close(score, maps.amax((1, 2)))


def test_the_absolute_error_may_be_a_sum_as_eq_2_has_it() -> None:
    model = small().eval()
    model.config = dataclasses.replace(model.config, absolute_error="sum")
    images = torch.rand(2, 3, *model.config.image_size)
    rebuilt = model.reconstruct(images)
    per_image = (rebuilt - images).abs().sum((1, 2, 3))
    torch.testing.assert_close(model.loss(images), per_image.mean() - ssim_map(rebuilt, images).mean())


def test_the_papers_protocol_is_section_4_2() -> None:
    (plan,) = Metal(MetalConfig()).plan("paper")
    assert (plan.learning_rate, plan.batch_size, plan.max_epochs) == (1e-4, 64, 3000)
    assert (plan.schedule, plan.patience, plan.patience_from) == ("constant", 50, 500)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patch_size=15", "patch_size 15 does not divide the 128x128 pixels to rebuild"),
        ("reduction=3", "reduction 3 does not divide image_size 256x256"),
        ("reduction=0", "reduction 0"),
        ("patch_size=0", "patch_size 0"),
        ("patch_size=-16", "patch_size -16"),
        ("patch_size=128", "hold one patch"),
        ("tokens=squares,squares", "at most once"),
        ("tokens=circles", "expected a comma-separated list"),
        ("tokens=", "expected a comma-separated list"),
        ("depth=0", "at least 1"),
        ("width=0", "at least 1"),
        ("shift=0.5", "shift between 0 and 0.5"),
        ("light=1", "light must lie between 0 and 1"),
        ("heads=3", "heads 3 does not divide width 128"),
        ("mask=blnd", "one of blind, zero-logit, none"),
        ("image_size=8", "at least 16 pixels"),
        ("smoothing_sigma=-1", "between 0 and a quarter"),
        ("smoothing_sigma=64", "between 0 and a quarter"),
        ("smoothing_sigma=nan", "between 0 and a quarter"),
        ("image_score=median", "one of max, mean, top-k"),
    ],
)
def test_what_does_not_fit_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_texts(MetalConfig, [text])


def test_rows_of_one_line_of_patches_are_refused() -> None:
    with pytest.raises(ConfigError, match="hold one patch"):
        MetalConfig(image_size=(16, 64), reduction=1, patch_size=16, smoothing_sigma=1.0)


def test_no_token_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="take each of squares, rows, columns"):
        MetalConfig(tokens=())


def with_partner() -> tuple[Metal, Tensor]:
    """A calibrated model of random weights and the images it learnt from; its partner knows two thirds of them."""
    model, pixels = small(), cookies(12, (32, 48))
    model.conclude(pixels[:8], pixels[8:])
    calibrate(model, pixels[:8], pixels[8:])
    return model.eval(), to_batch(pixels)


def test_the_calibrated_map_is_the_mean_of_logarithms_in_tail_units() -> None:
    """By numpy, from the three distances that the parts give, in units of images that the partner had not seen."""
    model, images = with_partner()
    pixels = cookies(12, (32, 48))
    new = Residuals.joined((model.out_of_fold_residuals(pixels[:8]), model.residuals_of(pixels[8:])))

    def logs(residuals: Residuals) -> list[np.ndarray]:
        assert model.calibration is not None
        assert residuals.distances is not None
        with torch.no_grad():
            own = model.calibration.whiten(residuals).square().mean(1)
        distances = [own, *residuals.distances.unbind(1)]
        return [np.log(np.maximum(distance.numpy().astype(np.float64), 1e-6)) for distance in distances]

    with torch.no_grad():
        residuals = model.residuals(images)
        assert model.calibration is not None
        found = model.calibration(residuals).numpy()
    units = []
    for log, good in zip(logs(residuals), logs(new), strict=True):
        known = np.sort(good[:, ::2, ::2].ravel())
        usual, tail = known.mean(), known[math.ceil(0.99 * len(known)) - 1]
        units.append((log - usual) / (tail - usual))
    np.testing.assert_allclose(found, np.logaddexp(0, 4 * np.mean(units, 0)) / 4, rtol=1e-3, atol=1e-4)


def test_the_raw_map_knows_nothing_of_the_partner() -> None:
    model, images = with_partner()
    alone = Metal(dataclasses.replace(model.config, auxiliary_density="none"))
    alone.encoders, alone.decoder = model.encoders, model.decoder
    with torch.no_grad():
        one, other = (each.judge(images, each.residuals(images), "raw") for each in (model, alone))
    assert torch.equal(one.anomaly_map, other.anomaly_map)
    assert alone.residuals(images).distances is None


def test_without_a_partner_the_calibrated_map_is_the_residuals_alone() -> None:
    torch.manual_seed(0)
    model, pixels = Metal(dataclasses.replace(small().config, auxiliary_density="none")), cookies(12, (32, 48))
    model.conclude(pixels[:8], pixels[8:])
    calibrate(model, pixels[:8], pixels[8:])
    assert model.calibration is not None
    assert model.calibration.log_distance is None
    with torch.no_grad():
        residuals = model.residuals(to_batch(pixels))
        torch.testing.assert_close(model.calibration(residuals), model.calibration.whiten(residuals).square().mean(1))


def test_the_partner_does_not_know_the_held_out_images() -> None:
    model, images = with_partner()
    assert model.appearance is not None
    with torch.no_grad():
        patches = model.appearance(images)[:, 1].amax((1, 2))
    assert patches[:8].max() < 1e-3 < patches[8:].min()


def test_training_scores_of_the_error_alone_are_raised_and_those_with_a_partner_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh: list[np.ndarray] = []
    plain = room._raised_to_held_out_level

    def target_image(scores: np.ndarray, new: np.ndarray) -> Tensor:
        fresh.append(new)
        return plain(scores, new)

    monkeypatch.setattr(room, "_raised_to_held_out_level", target_image)
    with_partner()
    model, pixels = small(), cookies(12, (32, 48))
    model.appearance = None
    calibrate(model, pixels[:8], pixels[8:])
    raised = [False] * 8 + [True] * 4
    assert [new.tolist() for new in fresh] == [[True] * 12, raised, raised, raised]  # a calibrated and a raw one each


def test_as_new_an_image_is_met_by_a_partner_that_did_not_learn_from_it() -> None:
    model, _ = with_partner()
    pixels = cookies(12, (32, 48))[:8]
    auxiliary_density = model.appearance
    new, known = model.out_of_fold_residuals(pixels), model.residuals_of(pixels)
    assert model.appearance is auxiliary_density
    torch.testing.assert_close(new.values[:, :3], known.values[:, :3])  # what has no partner is as it was, in order
    assert new.distances is not None
    assert known.distances is not None
    assert known.distances[:, 1].amax((1, 2)).max() < 1e-3 < new.distances[:, 1].amax((1, 2)).min()
    assert new.values[:, 3:].square().mean() > known.values[:, 3:].square().mean()
