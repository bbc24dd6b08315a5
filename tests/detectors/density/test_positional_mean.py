import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from metalad.detectors.density.positional_mean import QUARTER_WEIGHT_IMAGES, SMOOTHING_SIGMA, PositionalMean


def maps_of(images: int, noise: float = 0.1, seed: int = 0) -> Tensor:
    """Maps that are large in a bar at the left, as at an outline, and small elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    usual = torch.zeros(12, 16)
    usual[:, 2:6] = 1
    return usual + noise * torch.randn(images, 12, 16, generator=generator)


def fitted(maps: Tensor, images: int | None = None) -> PositionalMean:
    density = PositionalMean()
    density.fit(maps, len(maps) if images is None else images)
    return density


def test_the_excess_is_a_fraction_of_the_smoothed_mean_above_its_average() -> None:
    """Against NumPy and SciPy."""
    maps = maps_of(40)
    values = maps.double().numpy()
    smoothed = gaussian_filter(values.mean(0), SMOOTHING_SIGMA, mode="reflect")
    explained = 1 - values.var(0).mean() / values.var()
    fraction = explained * (20 / (20 + QUARTER_WEIGHT_IMAGES)) ** 2
    expected = fraction * np.maximum(smoothed - smoothed.mean(), 0)
    np.testing.assert_allclose(fitted(maps, 20).excess.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_excess_is_subtracted_from_every_map_and_never_added() -> None:
    density, maps = fitted(maps_of(40)), maps_of(3, seed=1)
    assert (density.excess >= 0).all()
    assert (density.excess == 0).any()
    torch.testing.assert_close(density(maps), maps - density.excess)


@pytest.mark.parametrize(("fewer", "more"), [(20, 100), (100, 1000)])
def test_more_is_subtracted_with_more_images(fewer: int, more: int) -> None:
    maps = maps_of(40)
    ratio = fitted(maps, fewer).excess.sum() / fitted(maps, more).excess.sum()
    expected = (fewer / (fewer + QUARTER_WEIGHT_IMAGES)) / (more / (more + QUARTER_WEIGHT_IMAGES))
    assert float(ratio) == pytest.approx(expected**2, rel=1e-5)


def test_hardly_anything_is_subtracted_where_position_explains_nothing() -> None:
    texture = torch.randn(40, 12, 16, generator=torch.Generator().manual_seed(0))
    assert float(fitted(texture).excess.max()) < 1e-3 * float(texture.std())
    assert float(fitted(maps_of(40)).excess.max()) > 0.1 * float(maps_of(40).std())


def test_constant_maps_have_no_excess() -> None:
    assert not fitted(torch.ones(4, 12, 16)).excess.any()
