"""The coreset against plain greedy selection."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalad.detectors.density import coreset as module
from metalad.detectors.density.coreset import coreset, random_projection


def plain_greedy(points: Tensor, count: int, seed: int, given: Tensor | None = None) -> list[int]:
    """Select one center at a time, by distances in double precision."""
    centers = [] if given is None else list(given)
    chosen = []
    if not centers:
        chosen = [int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(seed)))]
        centers = [points[chosen[0]]]
    distance = torch.full((len(points),), torch.inf, dtype=torch.double)
    while len(chosen) < count:
        for newest in centers:
            distance = torch.minimum(distance, torch.linalg.vector_norm((points - newest).double(), dim=1))
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
        centers = [points[chosen[-1]]]
    return chosen


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_it_is_plain_greedy_selection_for_any_number_of_candidates(count: int, points: int, seed: int) -> None:
    everything = torch.randn(max(count, points), 3, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", 1 + seed % 13)
        patch.setattr(module, "POINTS_AT_ONCE", 16)
        assert coreset(everything, count, seed).tolist() == plain_greedy(everything, count, seed)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
@example(count=600, centers=20, seed=0)  # several centers are selected at a time
def test_with_given_centers_it_is_plain_greedy_selection_of_points_far_from_them(
    count: int, centers: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, centers_given = (
        torch.randn(count + 10, 3, generator=generator),
        torch.randn(centers, 3, generator=generator),
    )
    assert coreset(points, count, seed, centers_given).tolist() == plain_greedy(points, count, seed, centers_given)


def test_it_is_plain_greedy_selection_on_clustered_points() -> None:
    generator = torch.Generator().manual_seed(1)
    centers = 5 * torch.randn(30, 16, generator=generator)
    points = centers[torch.randint(30, (3000,), generator=generator)] + torch.randn(3000, 16, generator=generator)
    assert coreset(points, 700, 2).tolist() == plain_greedy(points, 700, 2)


@pytest.mark.parametrize("copies", [5, 300])
def test_of_points_that_are_all_equal_one_is_selected(copies: int) -> None:
    assert len(coreset(torch.ones(copies, 2), copies, 0)) == 1
    assert len(coreset(torch.ones(copies, 2), copies, 0, torch.ones(1, 2))) == 0


def test_the_selection_ends_with_the_last_distinct_point() -> None:
    distinct = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    points = distinct.repeat(30, 1)
    chosen = coreset(points, 500, 0)
    assert sorted((chosen % 40).tolist()) == list(range(40))


def test_a_random_projection_nearly_keeps_distances() -> None:
    points = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))
    projected = random_projection(points, 128, 0)
    pairs = torch.triu_indices(50, 50, 1).unbind()
    ratio = torch.cdist(projected, projected)[pairs] / torch.cdist(points, points)[pairs]
    assert projected.shape == (50, 128)
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert ratio.std() < 0.1
    assert random_projection(points, 400, 0) is points
