import numpy as np
import pytest
import torch

from metalad.detectors.density.appearance import (
    CHANNELS,
    CODEBOOK_SIZE,
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
    assert len(fitted.patch.entries) < min(CODEBOOK_SIZE, MAX_POINTS)


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
