import numpy as np
import pytest
import torch

from metalad.detectors.density.appearance import (
    CHANNELS,
    CODEBOOK_SIZES,
    PATCH,
    PERTURBED_EVERY,
    PROJECTION,
    STRIDE,
    AppearanceDensity,
)
from metalad.detectors.density.codebook import MAX_POINTS
from metalad.nn.fitted import unfitted
from metalad.nn.pixels import to_batch
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
    assert len(fitted.patch.entries) < min(*CODEBOOK_SIZES.values(), MAX_POINTS)


def test_all_patches_of_a_training_image_are_codebook_entries(fitted: AppearanceDensity) -> None:
    distances = fitted(to_batch(good()))[:, 1]
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


def test_a_pasted_rectangle_increases_both_distances(fitted: AppearanceDensity) -> None:
    images = to_batch(cookies(14, (SIZE, SIZE)))[12:]
    pasted = images.clone()
    pasted[:, :, 16:40, 20:44] = torch.tensor([0.1, 0.9, 0.3])[:, None, None]
    before, after = (fitted(batch)[:, :, 16:40, 20:44].mean((0, 2, 3)) for batch in (images, pasted))
    assert (after > 1.5 * before).all(), (before, after)


def textures(count: int) -> np.ndarray:
    """Images of independent noise, whose content has nothing to do with position."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_the_codebook_has_less_weight_the_more_position_explains() -> None:
    weights = []
    for images in (good()[:1].repeat(8, 0), good(), textures(8)):
        appearance = AppearanceDensity(1)
        appearance.fit(images, CPU)
        per_image = appearance.weights(3)
        assert per_image is not None
        assert torch.equal(per_image, torch.stack([torch.ones(3), appearance.patch_weight.expand(3)], 1))
        weights.append(float(appearance.patch_weight))
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
            appearance(to_batch(images)).amax((2, 3)).mean(0) for images in (new, np.rot90(new, 2, (1, 2)).copy())
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
        distances[selection] = appearance(to_batch(unusual))[:, 1].mean() / appearance.scale
    assert distances["coreset"] < 0.7 * distances["k-means"], distances


def test_k_means_has_no_weight_to_store() -> None:
    appearance = AppearanceDensity(1, "k-means")
    appearance.fit(good(), CPU)
    assert appearance.weights(2) is None
    assert "patch_weight" not in appearance.state_dict()


@pytest.mark.parametrize("size", [(16, 16), (18, 21), (50, 34)])
def test_images_of_any_size_are_accepted(size: tuple[int, int]) -> None:
    appearance, images = AppearanceDensity(1), torch.rand(3, 3, *size)
    appearance.fit((255 * images).byte().permute(0, 2, 3, 1).numpy(), CPU)
    distances = appearance(images)
    assert distances.shape == (3, 2, *size)
    assert distances.isfinite().all()
    assert (distances >= 0).all()


def test_fitting_is_reproducible(fitted: AppearanceDensity) -> None:
    again = AppearanceDensity(1)
    torch.rand(7)  # the global random state must have no effect
    again.fit(good(), CPU)
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
