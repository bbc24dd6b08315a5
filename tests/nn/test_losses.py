from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor

from metalad.data.images import read_image, resize_image
from metalad.nn import losses
from metalad.nn.losses import CHUNK, l1_ssim_loss, mean_ssim, padded_ssim_map, ssim_map

SEEDS = st.integers(0, 2**32 - 1)
PAIRS = (
    ("mvtec/bottle/train/good/000.jpg", "mvtec/bottle/train/good/001.jpg"),
    ("mtd/magnetic_tile", "mvtec_partial/hazelnut"),
)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


@cache
def first_image(path: Path) -> np.ndarray:
    """Return the image at a path, or its first training image, with channels first, in [0, 1]."""
    file = path if path.is_file() else min((path / "train" / "good").iterdir())
    return np.moveaxis(resize_image(read_image(file), (96, 128)), -1, 0) / 255.0


def padded_reference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the SSIM map of scikit-image, including the border."""
    _, full = structural_similarity(  # type: ignore[no-untyped-call]
        one,
        other,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=0,
        full=True,
    )
    reference: np.ndarray = full
    return reference


def reference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the SSIM map of scikit-image where the whole window fits."""
    return padded_reference(one, other)[:, 5:-5, 5:-5]


@pytest.fixture
def double_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the window by one in double precision, to test the formula without rounding errors."""

    def window(size: int, device: torch.device, dtype: torch.dtype = torch.double) -> Tensor:
        del device, dtype
        kernel = torch.exp(-0.5 * (torch.arange(-5, 6).double() / 1.5) ** 2)
        kernel /= kernel.sum()
        columns = torch.arange(size - 10)[:, None] + torch.arange(11)
        return torch.zeros(size - 10, size, dtype=torch.double).scatter_(1, columns, kernel.expand(size - 10, 11))

    monkeypatch.setattr(losses, "window_matrix", window)


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.usefixtures("double_window")
def test_ssim_equals_scikit_image_on_real_images(shared_data: Path, names: tuple[str, str]) -> None:
    one, other = (first_image(shared_data / name) for name in names)
    result = ssim_map(torch.from_numpy(one)[None], torch.from_numpy(other)[None])[0]
    np.testing.assert_allclose(result.numpy(), reference(one, other), atol=1e-6)


@pytest.mark.parametrize("names", PAIRS)
def test_ssim_in_single_precision_is_accurate(shared_data: Path, names: tuple[str, str]) -> None:
    one, other = (first_image(shared_data / name) for name in names)
    result = ssim_map(torch.from_numpy(one).float()[None], torch.from_numpy(other).float()[None])[0]
    # Variances are small differences of squares; the mean, which the loss uses, is more accurate than single values.
    np.testing.assert_allclose(result.numpy(), reference(one, other), atol=1e-3)
    assert result.mean().item() == pytest.approx(reference(one, other).mean(), abs=1e-6)


@settings(deadline=None)
@given(SEEDS, st.integers(11, 30), st.integers(11, 30))
def test_ssim_of_identical_images_is_1(seed: int, height: int, width: int) -> None:
    image = noise(seed, 2, 3, height, width)
    torch.testing.assert_close(ssim_map(image, image), torch.ones(2, 3, height - 10, width - 10))
    assert l1_ssim_loss(image, image).item() == pytest.approx(-1, abs=1e-6)


@settings(deadline=None)
@given(SEEDS)
def test_ssim_is_symmetric_and_bounded(seed: int) -> None:
    one, other = noise(seed, 1, 3, 16, 20), noise(seed + 1, 1, 3, 16, 20)
    similarity = ssim_map(one, other)
    torch.testing.assert_close(similarity, ssim_map(other, one))
    assert similarity.abs().max() <= 1 + 1e-6


@settings(deadline=None)
@given(SEEDS)
def test_ssim_is_equivariant_to_transposition_and_flip(seed: int) -> None:
    one, other = noise(seed, 1, 3, 16, 20), noise(seed + 1, 1, 3, 16, 20)
    torch.testing.assert_close(ssim_map(one.mT, other.mT), ssim_map(one, other).mT, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ssim_map(one.flip(-1), other.flip(-1)), ssim_map(one, other).flip(-1))


@pytest.mark.usefixtures("double_window")
def test_gradient_of_ssim_map_passes_gradcheck() -> None:
    one = noise(0, 1, 2, 12, 13).double().requires_grad_()
    other = noise(1, 1, 2, 12, 13).double().requires_grad_()
    torch.autograd.gradcheck(ssim_map, (one, other))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3]), st.floats(0, 1))
def test_mean_ssim_and_its_gradient_equal_those_of_the_map(seed: int, batch: int, similarity: float) -> None:
    other = noise(seed, batch, 3, 13, 16)
    one = similarity * other + (1 - similarity) * noise(seed + 1, batch, 3, 13, 16)
    images, same_images = (one.clone().requires_grad_() for _ in range(2))
    mean, expected = mean_ssim(images, other), ssim_map(same_images, other).mean()
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(3 * mean, images)
    (expected_gradient,) = torch.autograd.grad(3 * expected, same_images)
    tolerance = 1e-3 * float(expected_gradient.abs().max()) + 1e-6
    torch.testing.assert_close(gradient, expected_gradient, atol=tolerance, rtol=0)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0.05, 0.5))
def test_loss_is_mean_absolute_error_minus_mean_ssim(seed: int, shift: float) -> None:
    """Both terms are means: their weights do not depend on the number or size of the images."""
    image = noise(seed, 1, 3, 16, 16) * 0.4
    loss = l1_ssim_loss(image + shift, image)
    assert (loss + ssim_map(image + shift, image).mean()).item() == pytest.approx(shift, abs=1e-6)
    twice = l1_ssim_loss((image + shift).repeat(2, 1, 1, 1), image.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, loss)


@pytest.mark.parametrize("similarity", [ssim_map, mean_ssim])
def test_ssim_ignores_autocast(similarity: Callable[[Tensor, Tensor], Tensor]) -> None:
    one, other = noise(0, 1, 3, 16, 16), noise(1, 1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = similarity(one, other)
    assert torch.equal(mixed, similarity(one, other))


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.usefixtures("double_window")
def test_padded_ssim_equals_scikit_image_including_the_border(shared_data: Path, names: tuple[str, str]) -> None:
    one, other = (first_image(shared_data / name) for name in names)
    result = padded_ssim_map(torch.from_numpy(one)[None], torch.from_numpy(other)[None])[0]
    np.testing.assert_allclose(result.numpy(), padded_reference(one, other), atol=1e-6)


@settings(deadline=None)
@given(SEEDS)
def test_padded_ssim_equals_ssim_where_the_window_fits(seed: int) -> None:
    one, other = noise(seed, 1, 1, 16, 20), noise(seed + 1, 1, 1, 16, 20)
    torch.testing.assert_close(padded_ssim_map(one, other)[..., 5:-5, 5:-5], ssim_map(one, other))
