from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from metalad.detectors.density.composition import (
    CELLS,
    COMPONENTS,
    MAX_CHANNELS,
    OFFSET,
    Composition,
    CompositionScore,
    averaging_matrix,
    level,
)

WEIGHTS = (0.5, 1 / 3)
HALF_WEIGHT_IMAGES = 100


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(maps: Tensor) -> Composition:
    density = Composition(maps.shape[1], (maps.shape[2], maps.shape[3]))
    density.fit(torch.split(maps, 5))
    return density


@pytest.mark.parametrize(("size", "cells"), [(8, 8), (16, 8), (24, 8), (6, 6)])
def test_averaging_over_whole_positions_is_average_pooling(size: int, cells: int) -> None:
    line = random(1, 1, size)
    expected = torch.nn.functional.adaptive_avg_pool1d(line, cells)[0, 0]
    torch.testing.assert_close(averaging_matrix(size, cells) @ line[0, 0], expected)


def test_averaging_over_fractions_of_positions_keeps_the_mean() -> None:
    matrix = averaging_matrix(11, 8)
    torch.testing.assert_close(matrix.sum(1), torch.ones(8))
    torch.testing.assert_close(matrix.sum(0), torch.full((11,), 8 / 11))
    torch.testing.assert_close(matrix[0, :3], torch.tensor([8 / 11, 3 / 11, 0]))


def test_the_distances_are_those_from_the_principal_subspace() -> None:
    """Against a singular value decomposition, with cells that are positions."""
    good, new = random(12, 3, CELLS, CELLS), random(4, 3, CELLS, CELLS, seed=1)
    distances = fitted(good)(new).double().numpy()
    flat = good.flatten(1).double().numpy()
    _, _, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    deviations = new.flatten(1).double().numpy() - flat.mean(0)
    residual = deviations - deviations @ directions[:11].T @ directions[:11]
    energy = (residual.reshape(4, 3, CELLS * CELLS) ** 2).mean(1)
    np.testing.assert_allclose(distances, np.sqrt(np.stack([energy.mean(1), energy.max(1)], 1)), rtol=1e-4)


def test_a_map_whose_parts_are_good_but_do_not_belong_together_is_far() -> None:
    """Two kinds of good maps; each position of a mixture is as in one kind, but no good map is like it."""
    kinds = random(2, 3, CELLS, CELLS)
    good = kinds.repeat(10, 1, 1, 1) + 0.1 * random(20, 3, CELLS, CELLS, seed=1)
    mixture = kinds[:1].clone()
    mixture[..., CELLS // 2 :] = kinds[1:, ..., CELLS // 2 :]
    density = fitted(good)
    assert (density(mixture) > 3 * density(kinds)).all()


def test_the_subspace_is_limited_in_components_and_channels() -> None:
    good = random(COMPONENTS + 20, 2 * MAX_CHANNELS + 1, 2, 2)
    density = fitted(good)
    assert density.directions.shape == (COMPONENTS, 4 * density.channels)
    assert density.channels <= MAX_CHANNELS
    torch.testing.assert_close(density.directions @ density.directions.T, torch.eye(COMPONENTS), atol=1e-5, rtol=0)
    assert density(good[:3]).shape == (3, 2)


@pytest.mark.parametrize("images", [1, 2, 6])
def test_one_image_or_equal_images_have_no_components_and_finite_distances(images: int) -> None:
    good = random(1, 3, 4, 4).expand(images, -1, -1, -1)
    density = fitted(good)
    assert len(density.directions) == 0
    assert density(good).abs().max() < 1e-6
    new = random(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(density(new)[:, 0], (new - good[:1]).square().mean((1, 2, 3)).sqrt())


def normalized_by_numpy(distances: Tensor) -> np.ndarray:
    """Return the normalized log-distances of at most 100 images that they are fitted on."""
    logs = distances.double().log().numpy()
    mean, quantile = logs.mean(0), logs.max(0)  # the 99 % quantile of at most 100 values
    normalized: np.ndarray = (logs - mean) / (quantile - mean)
    return normalized


@pytest.mark.parametrize("order", [1, 2])
def test_the_contribution_is_the_sum_or_the_root_of_the_sum_of_squares(order: Literal[1, 2]) -> None:
    score, distances, levels = (
        CompositionScore(WEIGHTS, HALF_WEIGHT_IMAGES, order),
        (0.5 * random(40, 2)).exp(),
        random(40),
    )
    score.fit(distances, levels, 40)
    terms = np.maximum((normalized_by_numpy(distances) + OFFSET) * WEIGHTS, 0)
    expected = terms.sum(1) if order == 1 else np.sqrt((terms**2).sum(1))
    np.testing.assert_allclose(score(distances, levels).numpy(), 40 / 140 * expected, rtol=1e-5)
    assert float(score(torch.full((1, 2), 1e-6), torch.zeros(1))) == 0


def test_the_contribution_grows_with_the_number_of_good_images() -> None:
    few, many, distances = (
        CompositionScore(WEIGHTS, HALF_WEIGHT_IMAGES),
        CompositionScore(WEIGHTS, HALF_WEIGHT_IMAGES),
        random(20, 2).exp(),
    )
    few.fit(distances, torch.zeros(20), 10)
    many.fit(distances.repeat(500, 1), torch.zeros(10_000), 10_000)
    high, level_of_high = torch.full((1, 2), 50.0), torch.zeros(1)
    assert float(few(high, level_of_high)) < 0.2 * float(many(high, level_of_high))
    assert float(few.shrinkage) == pytest.approx(10 / (10 + HALF_WEIGHT_IMAGES))


def test_what_the_level_explains_is_subtracted() -> None:
    """Two copies of each of 20 images: the slope is that of a regression of differences from the image, by NumPy."""
    own, rise = 0.3 * random(20), random(2, 20, seed=1).abs()
    levels = torch.cat([own, (own + rise).flatten()])
    distances = (0.2 * random(60, 2, seed=2) + torch.tensor([1.0, 0.5]) * levels[:, None]).exp()
    score = CompositionScore(WEIGHTS, HALF_WEIGHT_IMAGES)
    score.fit(distances, levels, 20)
    normalized = normalized_by_numpy(distances).reshape(3, 20, 2)
    x, y = rise.double().numpy(), normalized[1:] - normalized[0]
    slopes = (x[..., None] * y).sum((0, 1)) / (x**2).sum()
    fraction = (x**2).mean() / ((x**2).mean() + own.double().numpy().var())
    np.testing.assert_allclose(score.slopes.numpy(), slopes * fraction, rtol=1e-4)
    above = (levels.double().numpy() - own.double().numpy().mean()).clip(0, np.sqrt((x**2).mean()))
    rest = normalized.reshape(60, 2) - slopes * fraction * above[:, None]
    expected = 20 / 120 * np.maximum((rest + OFFSET) * WEIGHTS, 0).sum(1)
    np.testing.assert_allclose(score(distances, levels).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_without_copies_or_where_they_have_lower_distances_nothing_is_subtracted() -> None:
    score, levels = CompositionScore(WEIGHTS, HALF_WEIGHT_IMAGES), torch.arange(40.0)
    score.fit(random(40, 2).exp(), levels, 40)
    assert score.slopes.tolist() == [0, 0]
    score.fit((-levels[:, None].expand(-1, 2) / 40).exp(), levels, 20)
    assert score.slopes.tolist() == [0, 0]


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 6)])
def test_the_level_is_the_median_of_a_map(size: tuple[int, int]) -> None:
    maps = random(5, *size)
    assert torch.equal(level(maps), maps.flatten(1).median(1).values)
