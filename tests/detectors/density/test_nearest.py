import pytest
import torch

from metalad.detectors.density import nearest as module
from metalad.detectors.density.nearest import nearest
from tests.detectors.density.random_maps import noise


@pytest.mark.parametrize(("queries_at_once", "bank_chunk"), [(2048, 2048), (2048, 7), (11, 2048), (11, 7), (1, 1)])
def test_nearest_is_correct_across_chunks(
    queries_at_once: int, bank_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", queries_at_once)
    monkeypatch.setattr(module, "BANK_CHUNK", bank_chunk)
    queries, bank = noise(40, 3), noise(30, 3, seed=1)
    assert torch.equal(nearest(queries, bank), torch.cdist(queries, bank).argmin(1))


@pytest.mark.parametrize("bank_chunk", [2048, 2])
def test_of_equal_vectors_the_first_is_the_nearest(bank_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BANK_CHUNK", bank_chunk)
    bank = torch.tensor([[5.0], [1.0], [1.0], [1.0]])
    assert nearest(torch.tensor([[0.0], [9.0]]), bank).tolist() == [1, 0]
