import numpy as np
import pytest
import torch

from metalad.detectors.density import appearance as module
from metalad.detectors.density.appearance import (
    CHANNELS,
    CODEBOOK_POINTS,
    CODEBOOK_SIZES,
    HIGH_PASS_POWER,
    HIGH_PASS_WEIGHT,
    MAX_HIGH_PASS_WEIGHT,
    PATCH,
    PERTURBED_EVERY,
    PROJECTION,
    STRIDE,
    AppearanceDensity,
    grid_of,
)
from metalad.nn.fitted import unfitted
from metalad.nn.pixels import subsampled, to_batch
from tests.cookies import cookies

SIZE = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fitted() -> AppearanceDensity:
    appearance = AppearanceDensity(1)
    appearance.fit(good(), CPU)
    return appearance


def good() -> np.ndarray:
    return cookies(8, (SIZE, SIZE))


def test_a_new_model_is_not_fitted(fitted: AppearanceDensity) -> None:
    assert set(unfitted(AppearanceDensity(1))) >= {"position.whitening", "patch.entries", "components.mean"}
    assert unfitted(fitted) == []
    assert fitted.patch.entries.shape == ((8 + 8 // PERTURBED_EVERY) * (SIZE // STRIDE) ** 2, PROJECTION + 2)
    assert len(fitted.patch.entries) < min(*CODEBOOK_SIZES.values(), *CODEBOOK_POINTS.values())


def test_all_patches_of_a_training_image_are_codebook_entries(fitted: AppearanceDensity) -> None:
    distances = fitted(to_batch(good())).distances[:, 1]
    assert distances.max() < 1e-4 * fitted.scale


def test_an_edge_has_positive_strength_only_in_directions_of_increasing_brightness() -> None:
    """A step that increases to the right has angle 0; in the opposite direction its strength is 0."""
    step = torch.zeros(1, 3, SIZE, SIZE)
    step[..., SIZE // 2 :] = 1
    across, down = (AppearanceDensity(1).edges(images)[0, :, 4, 4] for images in (step, step.mT))
    brightness = slice(3, 3 + 8)
    expected = torch.cos(2 * torch.pi * torch.arange(8) / 8).clamp_min(0)
    for edges, shift in ((across, 0), (down, 2)):
        torch.testing.assert_close(edges[brightness] / edges[brightness].max(), expected.roll(shift))
    assert len(across) == CHANNELS


def test_a_constant_gray_image_has_brightness_but_no_edges_or_color() -> None:
    features = AppearanceDensity(1).edges(torch.full((1, 3, SIZE, SIZE), 0.6))[0, :, 2:-2, 2:-2]
    torch.testing.assert_close(features[0], torch.full_like(features[0], 0.6), atol=1e-3, rtol=0)
    assert features[1:].abs().max() < 1e-3


def test_a_projected_patch_equals_an_explicit_matrix_product() -> None:
    images, appearance = torch.rand(1, 3, 2 * PATCH * STRIDE, 2 * PATCH * STRIDE), AppearanceDensity(1)
    reduced = images[0].reshape(3, 2 * PATCH, STRIDE, 2 * PATCH, STRIDE).mean((2, 4))
    expected = appearance.projection.flatten(1) @ reduced[:, 4 : 4 + PATCH, 3 : 3 + PATCH].flatten()
    torch.testing.assert_close(appearance.patches(images)[0, :, 4 + PATCH // 2, 3 + PATCH // 2], expected)


def test_the_projection_approximately_preserves_distances() -> None:
    patches = torch.randn(40, 3 * PATCH**2, generator=torch.Generator().manual_seed(1))
    projected = patches @ AppearanceDensity(1).projection.flatten(1).T
    ratio = torch.nn.functional.pdist(projected) / torch.nn.functional.pdist(patches)
    assert 0.7 < ratio.min() < ratio.max() < 1.3
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)


def test_pasted_noise_increases_the_distance_of_high_pass_patches(fitted: AppearanceDensity) -> None:
    images = to_batch(cookies(14, (SIZE, SIZE)))[12:]
    pasted = images.clone()
    pasted[:, :, 16:40, 20:44] = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    before, after = (fitted(batch).distances[:, 2, 16:40, 20:44].mean() for batch in (images, pasted))
    assert after > 1.5 * before


def test_a_pasted_rectangle_increases_the_distances_of_position_and_patch(fitted: AppearanceDensity) -> None:
    images = to_batch(cookies(14, (SIZE, SIZE)))[12:]
    pasted = images.clone()
    pasted[:, :, 16:40, 20:44] = torch.tensor([0.1, 0.9, 0.3])[:, None, None]
    before, after = (fitted(batch).distances[:, :2, 16:40, 20:44].mean((0, 2, 3)) for batch in (images, pasted))
    assert (after > 1.5 * before).all(), (before, after)


def textures(count: int) -> np.ndarray:
    """Images of independent noise, whose content has nothing to do with position."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_the_codebook_has_less_weight_the_more_position_explains() -> None:
    weights = []
    for images in (good()[:1].repeat(8, 0), good(), textures(8)):
        appearance = AppearanceDensity(1)
        appearance.fit(images, CPU)
        position, patch, _ = appearance.weights()
        assert position == 1
        weights.append(float(patch))
    assert weights[0] < 1e-3 < weights[1] < weights[2] - 0.1 < 0.9, weights


def turned(images: np.ndarray) -> np.ndarray:
    """Each image and the same turned by 90 degrees, 180 and 270."""
    return np.concatenate([np.rot90(images, quarters, (1, 2)) for quarters in range(4)])


def test_turned_training_images_lower_the_distances_of_turned_images() -> None:
    """Relative to the distances of upright images, which set the threshold."""
    new = cookies(12, (SIZE, SIZE))[8:]
    relative = []
    for training in (good(), turned(good())):
        appearance = AppearanceDensity(1)
        appearance.fit(training, CPU)
        upright, upside_down = (
            appearance(to_batch(images)).distances.amax((2, 3)).mean(0)
            for images in (new, np.rot90(new, 2, (1, 2)).copy())
        )
        relative.append(upside_down / upright)
    assert (relative[1] < relative[0]).all(), relative


def test_a_coreset_keeps_the_patches_of_one_unusual_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among 24 images of one kind, one of another kind has entries that are nearer than the averages of k-means."""
    monkeypatch.setattr("metalad.detectors.density.appearance.CODEBOOK_SIZES", {"coreset": 100, "k-means": 100})
    usual = good()[:1].repeat(24, 0)
    unusual = np.ascontiguousarray(usual[:1].transpose(0, 2, 1, 3))
    distances = {}
    for selection in ("coreset", "k-means"):
        appearance = AppearanceDensity(1, selection)
        appearance.fit(np.concatenate([usual, unusual]), CPU)
        distances[selection] = appearance(to_batch(unusual)).distances[:, 1].mean() / appearance.scale
    assert distances["coreset"] < 0.7 * distances["k-means"], distances


def test_high_pass_patches_have_weight_where_they_repeat_and_not_position() -> None:
    """Objects at random positions have weight; images that are all equal have none, nor has random texture."""
    rng = np.random.default_rng(0)
    moved = np.stack([np.roll(good()[0], rng.integers(0, SIZE, 2), (0, 1)) for _ in range(8)])
    weights = []
    for images in (good()[:1].repeat(8, 0), textures(8), moved):
        appearance = AppearanceDensity(1)
        appearance.fit(images, CPU)
        assert appearance.high_pass is not None
        weight = appearance.weights()[2]
        expected = HIGH_PASS_WEIGHT * appearance.patch_weight * appearance.high_pass.explained_variance**HIGH_PASS_POWER
        assert float(weight) == pytest.approx(min(float(expected), MAX_HIGH_PASS_WEIGHT))
        weights.append(float(weight))
    assert max(weights[:2]) < 0.2 < weights[2], weights


def with_composition(pixels: np.ndarray) -> AppearanceDensity:
    appearance = AppearanceDensity(1, composition_grid=grid_of(SIZE, SIZE))
    appearance.fit(pixels, CPU)
    return appearance


def test_an_image_whose_halves_are_exchanged_has_a_larger_contribution() -> None:
    """Its patches are those of good images, each somewhere else."""
    pixels = cookies(31, (SIZE, SIZE))
    appearance, new = with_composition(pixels[:24]), pixels[24:]
    usual, exchanged = (appearance(to_batch(images)).contribution for images in (new, np.roll(new, SIZE // 2, 1)))
    assert usual is not None
    assert exchanged is not None
    assert (usual >= 0).all()
    assert exchanged.min() > usual.max()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_composition_is_finite_with_few_images(count: int) -> None:
    pixels = cookies(8, (SIZE, SIZE))
    contribution = with_composition(pixels[:count])(to_batch(pixels)).contribution
    assert contribution is not None
    assert contribution.isfinite().all()
    assert (contribution == 0).all() == (count == 1)


def test_scales_of_the_composition_are_those_of_held_out_halves() -> None:
    """The mean normalized log-distance of images that it was fitted on is far below 0, that of new ones near 0."""
    pixels = cookies(31, (SIZE, SIZE))
    appearance = with_composition(pixels[:24])
    assert appearance.composition is not None
    known, new = (
        appearance.composition.score._normalized(
            appearance.composition.density(appearance.standardization(appearance.edges(to_batch(images))))
        ).mean()
        for images in (pixels[:24], pixels[24:])
    )
    assert known < -1
    assert abs(new) < 0.5


def test_k_means_has_weight_1_and_none_to_store() -> None:
    appearance = AppearanceDensity(1, "k-means", high_pass=False)
    appearance.fit(good(), CPU)
    assert torch.equal(appearance.weights(), torch.ones(2))
    assert "patch_weight" not in appearance.state_dict()


@pytest.mark.parametrize("size", [(16, 16), (18, 21), (50, 34)])
def test_images_of_any_size_are_accepted(size: tuple[int, int]) -> None:
    appearance, images = AppearanceDensity(1), torch.rand(3, 3, *size)
    appearance.fit((255 * images).byte().permute(0, 2, 3, 1).numpy(), CPU)
    distances = appearance(images).distances
    assert distances.shape == (3, 3, *size)
    assert distances.isfinite().all()
    assert (distances >= 0).all()


def test_fitting_is_reproducible(fitted: AppearanceDensity) -> None:
    again = AppearanceDensity(1)
    torch.rand(7)  # the global random state must have no effect
    again.fit(good(), CPU)
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_of_large_images_fewer_are_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = good()
    evenly_spaced = subsampled(pixels, 5)
    few, limited = AppearanceDensity(1), AppearanceDensity(1)
    few.fit(evenly_spaced, CPU)
    monkeypatch.setattr(module, "MIN_IMAGES", 1)
    monkeypatch.setattr(module, "MAX_PIXELS", 5 * SIZE * SIZE)
    limited.fit(pixels, CPU)
    torch.testing.assert_close(limited.state_dict(), few.state_dict(), rtol=0, atol=0)
    monkeypatch.setattr(module, "MIN_IMAGES", len(pixels))
    limited.fit(pixels, CPU)
    assert limited.patch.entries.shape[0] > few.patch.entries.shape[0]
