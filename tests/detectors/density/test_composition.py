import numpy as np
import pytest
import torch
from torch import Tensor

from metalad.detectors.density.composition import (
    CELLS,
    COMPONENTS,
    HALF_WEIGHT_IMAGES,
    MAX_CHANNELS,
    OFFSET,
    WEIGHTS,
    Composition,
    CompositionScore,
    averaging_matrix,
)


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


def test_the_contribution_is_the_root_of_the_sum_of_squares() -> None:
    score, distances = CompositionScore(), (0.5 * random(40, 2)).exp()
    score.fit(distances, HALF_WEIGHT_IMAGES)
    logs = distances.double().log().numpy()
    mean, quantile = logs.mean(0), np.sort(logs, axis=0)[39]  # the 99 % quantile of 40 values
    terms = np.maximum((logs - mean) / (quantile - mean) + OFFSET, 0) * WEIGHTS
    np.testing.assert_allclose(score(distances).numpy(), 0.5 * np.sqrt((terms**2).sum(1)), rtol=1e-5)
    assert float(score(torch.full((1, 2), 1e-6))) == 0


def test_the_contribution_grows_with_the_number_of_good_images() -> None:
    few, many, distances = CompositionScore(), CompositionScore(), random(20, 2).exp()
    few.fit(distances, 10)
    many.fit(distances, 10_000)
    high = torch.full((1, 2), 50.0)
    assert float(few(high)) < 0.2 * float(many(high))
