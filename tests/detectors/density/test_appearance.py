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
from metalad.detectors.density.codebook import POINTS
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


def test_nothing_is_learnt_at_first(fitted: AppearanceDensity) -> None:
    assert not AppearanceDensity(1).fitted
    assert fitted.fitted
    assert fitted.patch.entries.shape == ((8 + 8 // PERTURBED_EVERY) * (SIZE // STRIDE) ** 2, PROJECTION + 2)
    assert len(fitted.patch.entries) < min(CODEBOOK_SIZE, POINTS)


def test_an_image_that_was_learnt_has_each_of_its_patches_among_the_words(fitted: AppearanceDensity) -> None:
    distances = fitted(to_batch(good()))[:, 1]
    assert distances.max() < 1e-4 * fitted.scale


def test_an_edge_counts_in_the_direction_it_rises() -> None:
    """A step up to the right is one to angle 0; the opposite direction sees nothing of it."""
    step = torch.zeros(1, 3, SIZE, SIZE)
    step[..., SIZE // 2 :] = 1
    across, down = (AppearanceDensity(1).edges(images)[0, :, 4, 4] for images in (step, step.mT))
    brightness = slice(3, 3 + 8)
    expected = torch.cos(2 * torch.pi * torch.arange(8) / 8).clamp_min(0)
    for found, turn in ((across, 0), (down, 2)):
        torch.testing.assert_close(found[brightness] / found[brightness].max(), expected.roll(turn))
    assert len(across) == CHANNELS


def test_grey_has_brightness_and_neither_edges_nor_colour_inside() -> None:
    found = AppearanceDensity(1).edges(torch.full((1, 3, SIZE, SIZE), 0.6))[0, :, 2:-2, 2:-2]
    torch.testing.assert_close(found[0], torch.full_like(found[0], 0.6), atol=1e-3, rtol=0)
    assert found[1:].abs().max() < 1e-3


def test_a_patch_is_projected_as_by_hand() -> None:
    images, appearance = torch.rand(1, 3, 2 * PATCH * STRIDE, 2 * PATCH * STRIDE), AppearanceDensity(1)
    reduced = images[0].reshape(3, 2 * PATCH, STRIDE, 2 * PATCH, STRIDE).mean((2, 4))
    by_hand = appearance.projection.flatten(1) @ reduced[:, 4 : 4 + PATCH, 3 : 3 + PATCH].flatten()
    torch.testing.assert_close(appearance.patches(images)[0, :, 4 + PATCH // 2, 3 + PATCH // 2], by_hand)


def test_distances_between_patches_are_nearly_kept() -> None:
    patches = torch.randn(40, 3 * PATCH**2, generator=torch.Generator().manual_seed(1))
    projected = patches @ AppearanceDensity(1).projection.flatten(1).T
    ratio = torch.nn.functional.pdist(projected) / torch.nn.functional.pdist(patches)
    assert 0.7 < ratio.min() < ratio.max() < 1.3
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)


def test_what_is_pasted_in_stands_out_in_both(fitted: AppearanceDensity) -> None:
    images = to_batch(cookies(14, (SIZE, SIZE)))[12:]
    pasted = images.clone()
    pasted[:, :, 16:40, 20:44] = torch.tensor([0.1, 0.9, 0.3])[:, None, None]
    before, after = (fitted(batch)[:, :, 16:40, 20:44].mean((0, 2, 3)) for batch in (images, pasted))
    assert (after > 1.5 * before).all(), (before, after)


@pytest.mark.parametrize("size", [(16, 16), (18, 21), (50, 34)])
def test_any_size_will_do(size: tuple[int, int]) -> None:
    appearance, images = AppearanceDensity(1), torch.rand(3, 3, *size)
    appearance.fit((255 * images).byte().permute(0, 2, 3, 1).numpy(), CPU)
    distances = appearance(images)
    assert distances.shape == (3, 2, *size)
    assert distances.isfinite().all()
    assert (distances >= 0).all()


def test_the_same_images_give_the_same_bits(fitted: AppearanceDensity) -> None:
    again = AppearanceDensity(1)
    torch.rand(7)  # chance elsewhere must not matter
    again.fit(good(), CPU)
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
