import pytest
import torch

from metalad.detectors.density.codebook import Codebook, Selection, sampled_positions
from tests.detectors.density.random_maps import noise


def test_with_fewer_points_than_entries_each_point_is_an_entry() -> None:
    points = noise(50, 6)
    book = Codebook(64)
    book.fit(points, 0)
    maps = noise(2, 6, 3, 4, seed=1)
    expected = torch.cdist(maps.permute(0, 2, 3, 1).reshape(-1, 6), points).amin(1).reshape(2, 3, 4)
    torch.testing.assert_close(book(maps), expected, rtol=1e-5, atol=1e-5)


def test_entries_are_the_centers_of_tight_clusters() -> None:
    """The distance of a point far from all clusters is its distance from the nearest center."""
    centers = 10 * noise(8, 5)
    points = (centers + 0.01 * noise(200, 8, 5, seed=1)).reshape(-1, 5)
    book = Codebook(64)
    book.fit(points, 0)
    assert book.entries.shape == (64, 5)
    near = book(points.T.reshape(1, 5, 40, 40))
    assert near.max() < 0.1
    far = 100 + torch.zeros(1, 5, 1, 1)
    torch.testing.assert_close(
        book(far).flatten(), torch.cdist(far.reshape(1, 5), centers).amin(1), rtol=1e-3, atol=0.05
    )


def test_the_distance_of_an_entry_from_itself_is_zero() -> None:
    """Expanded squares would give the rounding errors of large numbers."""
    book = Codebook(16)
    book.fit(1000 + noise(16, 4), 0)
    assert torch.count_nonzero(book(book.entries.T.reshape(1, 4, 4, 4))) == 0


def test_a_coreset_keeps_rare_points_that_k_means_averages_away() -> None:
    frequent, rare = 0.1 * noise(4000, 6), 5 * noise(6, 6, seed=1)
    points = torch.cat([frequent, rare])
    distances = {}
    for selection in ("k-means", "coreset"):
        book = Codebook(16, selection)
        book.fit(points, 0)
        assert book.entries.shape == (16, 6)
        distances[selection] = book(rare.T.reshape(1, 6, 2, 3)).max()
    assert distances["coreset"] < 1e-6 < 1 < distances["k-means"]


def test_a_coreset_consists_of_the_points_and_covers_them_within_twice_the_optimum() -> None:
    """Gonzalez 1985: the covering radius of k-center greedy is at most twice that of the best 8 points."""
    centers = 10 * noise(8, 5)
    points = (centers + 0.01 * noise(50, 8, 5, seed=1)).reshape(-1, 5)
    book = Codebook(8, "coreset")
    book.fit(points, 0)
    assert (book.entries[:, None] == points).all(2).any(1).all()

    def radius(entries: torch.Tensor) -> torch.Tensor:
        distances: torch.Tensor = torch.linalg.vector_norm(points[:, None] - entries, dim=2)
        return distances.amin(1).max()

    assert radius(book.entries) <= 2 * radius(centers)


def test_averaged_entries_of_a_coreset_are_where_most_points_are() -> None:
    """Alone, k-center greedy selects sparse points before it selects one of each dense cluster."""
    clusters = noise(4, 1, 6) + 0.01 * noise(4, 500, 6, seed=1)
    dense, sparse = clusters.reshape(-1, 6), 20 * noise(200, 6, seed=2)
    points = torch.cat([dense, sparse])
    nearest = {}
    for averaged in (0.0, 0.4):
        book = Codebook(40, "coreset", averaged)
        book.fit(points, 0)
        assert book.entries.shape == (40, 6)
        nearest[averaged] = book(dense.T.reshape(1, 6, 40, 50)).mean()
        kept = (book.entries[:, None] == points).all(2).any(1).sum()
        assert kept == 40 - round(40 * averaged)
    assert nearest[0.4] < 0.2 * nearest[0.0]


def test_sampled_positions_are_distinct_feature_vectors_of_the_chosen_images() -> None:
    maps = torch.arange(4 * 3 * 5.0).reshape(4, 1, 3, 5)  # each position has a value of its own
    sample = sampled_positions(maps, 0, torch.tensor([1, 3]), most=20).flatten()
    assert len(sample) == len(set(sample.tolist())) == 20
    assert set(sample.tolist()) <= set(maps[[1, 3]].flatten().tolist())
    assert sampled_positions(maps, 0, most=100).shape == (60, 1)


@pytest.mark.parametrize(("selection", "averaged"), [("coreset", 0.0), ("coreset", 0.2), ("k-means", 0.0)])
@pytest.mark.parametrize("entries", [10, 300])
def test_fitting_with_weights_is_fitting_to_weighted_points(
    selection: Selection, averaged: float, entries: int
) -> None:
    points, weights = noise(200, 80), torch.linspace(0.1, 2, 80)
    one, other = Codebook(entries, selection, averaged), Codebook(entries, selection, averaged)
    one.fit(points, 0, weights)
    other.fit(points * weights, 0)
    torch.testing.assert_close(one.entries, other.entries)
