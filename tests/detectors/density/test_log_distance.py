import math

import pytest
import torch
import torch.nn.functional as F

from metalad.detectors.density.log_distance import SHARPNESS, NormalizedLogDistance, as_map
from tests.detectors.density.random_maps import noise


def test_the_mean_is_0_and_1_percent_of_good_positions_exceed_1() -> None:
    distances = [noise(20, 30, 30).exp(), 5 * noise(20, 30, 30, seed=1).abs() + 0.1]
    for values in distances:
        log_distance = NormalizedLogDistance(1)
        log_distance.fit([values])
        normalized = log_distance([values])
        assert normalized.mean().abs() < 1e-4
        assert float((normalized > 1).float().mean()) == pytest.approx(0.01, abs=2e-4)


def test_distances_of_rounding_errors_are_equal() -> None:
    distances = noise(10, 20, 20).exp()
    log_distance = NormalizedLogDistance(1)
    log_distance.fit([distances])
    zero, error, small, larger = (log_distance([torch.full((1, 1, 1), value)]) for value in (0.0, 1e-5, 1e-3, 0.03))
    assert zero == error == small < larger < log_distance([torch.full((1, 1, 1), 0.05)])


def test_the_scale_of_a_distance_has_no_effect_and_a_large_variation_reduces_its_influence() -> None:
    steady, unsteady = (0.1 * noise(10, 20, 20)).exp(), (2 * noise(10, 20, 20, seed=1)).exp()
    log_distance, scaled = NormalizedLogDistance(2), NormalizedLogDistance(2)
    log_distance.fit([steady, unsteady])
    scaled.fit([7 * steady, 0.01 * unsteady])
    twice = torch.full((1, 1, 1), 2.0)
    torch.testing.assert_close(scaled([7 * twice, 0.01 * twice]), log_distance([twice, twice]))
    one = torch.ones(1, 1, 1)
    effect_of_steady = log_distance([twice, one]) - log_distance([one, one])
    effect_of_unsteady = log_distance([one, twice]) - log_distance([one, one])
    assert effect_of_steady > 10 * effect_of_unsteady


def test_the_result_is_the_weighted_mean() -> None:
    distances = [(0.1 * noise(10, 20, 20)).exp(), noise(10, 20, 20, seed=1).exp()]
    log_distance = NormalizedLogDistance(2)
    log_distance.fit(distances)
    first, second = (log_distance(distances, torch.eye(2)[index]) for index in range(2))
    torch.testing.assert_close(log_distance(distances), (first + second) / 2)
    torch.testing.assert_close(log_distance(distances, torch.tensor([3.0, 1.0])), (3 * first + second) / 4)


def test_weights_that_are_fitted_equal_weights_of_the_mean() -> None:
    distances = [(0.1 * noise(10, 20, 20)).exp(), noise(10, 20, 20, seed=1).exp()]
    plain, weighted = NormalizedLogDistance(2), NormalizedLogDistance(2)
    plain.fit(distances)
    weighted.fit(distances, torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(weighted(distances), plain(distances, torch.tensor([3.0, 1.0])))
    weighted.fit(distances, torch.tensor([3.0, 0.0]))
    first = plain(distances, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(weighted(distances), first, atol=0.01, rtol=0.01)


def test_the_map_of_an_exported_graph_is_the_softplus_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.linspace(-12, 12, 4001)
    exact = F.softplus(values.double(), beta=SHARPNESS)
    for exported in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda exported=exported: exported)
        torch.testing.assert_close(as_map(values).double(), exact, rtol=3e-6, atol=0)
    assert float(as_map(torch.tensor(-12.0))) == pytest.approx(math.exp(-48) / 4, rel=1e-5)
