import numpy as np
import pytest
import torch

from metalad.nn.augmentation import augment, check_augmentation
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

IMAGES = torch.from_numpy(cookies(2, (48, 64))).permute(0, 3, 1, 2).float() / 255


def test_without_a_wish_nothing_changes() -> None:
    torch.testing.assert_close(augment(IMAGES), IMAGES, rtol=0, atol=1e-5)


def test_the_same_chance_gives_the_same_bits() -> None:
    one, other, third = (
        (torch.manual_seed(seed), augment(IMAGES, degrees=10.0, shift=0.1, flip=True))[1] for seed in (1, 1, 2)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_flips_are_mirror_images() -> None:
    torch.manual_seed(0)
    many = IMAGES[:1].expand(40, -1, -1, -1)
    flipped = augment(many, flip=True)
    mirrored = [torch.allclose(image, IMAGES[0].flip(-1), atol=1e-4) for image in flipped]
    same = [torch.allclose(image, IMAGES[0], atol=1e-4) for image in flipped]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize("degrees", [0.0, 90.0])
def test_no_turn_or_shift_exceeds_its_bound(degrees: float) -> None:
    """A bright dot in the middle of a dark image stays within the shift's bound, however it turns about it."""
    torch.manual_seed(0)
    images = torch.zeros(50, 3, 41, 61)
    images[:, :, 18:23, 28:33] = 1
    moved = augment(images, degrees=degrees, shift=0.1).mean(1).numpy()
    places = np.array([np.unravel_index(image.argmax(), image.shape) for image in moved]) - (20, 30)
    assert (np.abs(places) <= np.array([0.1 * 41, 0.1 * 61]) + 3).all()
    assert np.abs(places).max(0).min() >= 2


def test_a_turn_keeps_shapes_in_an_oblong_image() -> None:
    """A disc stays a disc: a turn that forgot the aspect ratio would squeeze it."""
    torch.manual_seed(0)
    down, across = torch.meshgrid(torch.arange(41) - 20, torch.arange(81) - 40, indexing="ij")
    disc = ((down**2 + across**2) < 12**2).float().expand(20, 3, 41, 81)
    turned = augment(disc, degrees=25.0)  # turned farther, mirror images of the disc would come in
    assert float((turned - disc).abs().mean((1, 2, 3)).max()) < 0.01


def test_light_changes_within_its_bound_and_stays_light() -> None:
    torch.manual_seed(0)
    many = (0.4 + 0.5 * IMAGES[:1]).expand(60, -1, -1, -1)
    lit = augment(many, brightness=0.2)
    gains = (lit / many).amax((1, 2, 3))
    assert 0.8 - 1e-3 <= gains.min() < 0.85
    assert 1.15 < gains.max() <= 1.2 + 1e-3
    assert lit.max() <= 1


@pytest.mark.parametrize(("degrees", "shift", "brightness"), [(181.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 1.0)])
def test_what_would_leave_nothing_of_an_image_is_refused(degrees: float, shift: float, brightness: float) -> None:
    with pytest.raises(ConfigError, match="must lie between"):
        check_augmentation(degrees, shift, brightness)
