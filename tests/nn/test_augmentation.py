import numpy as np
import pytest
import torch

from metalad.nn.augmentation import augment, check_augmentation
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

IMAGES = torch.from_numpy(cookies(2, (48, 64))).permute(0, 3, 1, 2).float() / 255


def test_default_augmentation_returns_the_input() -> None:
    torch.testing.assert_close(augment(IMAGES), IMAGES, rtol=0, atol=1e-5)


def test_same_seed_gives_identical_images() -> None:
    first, second, other_seed = (
        (torch.manual_seed(seed), augment(IMAGES, degrees=10.0, shift=0.1, flip=True))[1] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other_seed)


def test_flip_mirrors_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    many = IMAGES[:1].expand(40, -1, -1, -1)
    flipped = augment(many, flip=True)
    mirrored = [torch.allclose(image, IMAGES[0].flip(-1), atol=1e-4) for image in flipped]
    unchanged = [torch.allclose(image, IMAGES[0], atol=1e-4) for image in flipped]
    assert all(a != b for a, b in zip(mirrored, unchanged, strict=True))
    assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize("degrees", [0.0, 90.0])
def test_rotation_and_shift_stay_within_limits(degrees: float) -> None:
    """A bright dot at the image center moves by at most the maximum shift, at any rotation."""
    torch.manual_seed(0)
    images = torch.zeros(50, 3, 41, 61)
    images[:, :, 18:23, 28:33] = 1
    moved = augment(images, degrees=degrees, shift=0.1).mean(1).numpy()
    offsets = np.array([np.unravel_index(image.argmax(), image.shape) for image in moved]) - (20, 30)
    assert (np.abs(offsets) <= np.array([0.1 * 41, 0.1 * 61]) + 3).all()
    assert np.abs(offsets).max(0).min() >= 2


def test_rotation_preserves_shapes_in_non_square_images() -> None:
    """A disc stays a disc; a rotation that ignores the aspect ratio would distort it."""
    torch.manual_seed(0)
    down, across = torch.meshgrid(torch.arange(41) - 20, torch.arange(81) - 40, indexing="ij")
    disc = ((down**2 + across**2) < 12**2).float().expand(20, 3, 41, 81)
    rotated = augment(disc, degrees=25.0)  # larger angles would show mirror images of the disc
    assert float((rotated - disc).abs().mean((1, 2, 3)).max()) < 0.01


def test_brightness_changes_within_limits_and_is_clipped_at_1() -> None:
    torch.manual_seed(0)
    many = (0.4 + 0.5 * IMAGES[:1]).expand(60, -1, -1, -1)
    changed = augment(many, brightness=0.2)
    gains = (changed / many).amax((1, 2, 3))
    assert 0.8 - 1e-3 <= gains.min() < 0.85
    assert 1.15 < gains.max() <= 1.2 + 1e-3
    assert changed.max() <= 1


@pytest.mark.parametrize(("degrees", "shift", "brightness"), [(181.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 1.0)])
def test_settings_outside_limits_raise_config_error(degrees: float, shift: float, brightness: float) -> None:
    with pytest.raises(ConfigError, match="must lie between"):
        check_augmentation(degrees, shift, brightness)
