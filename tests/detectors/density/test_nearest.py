from unittest import mock

import pytest
import torch

from metalad.detectors.density import nearest as module
from metalad.detectors.density.nearest import nearest
from tests.detectors.density.random_maps import noise

CHUNKS = [(2048, 512), (7, 512), (7, 7), (1, 7), (1, 1)]
"""Bank vectors of a search in one pass at most, and of a chunk of a search in two passes."""


def set_chunks(monkeypatch: pytest.MonkeyPatch, one_pass: int, chunk: int) -> None:
    monkeypatch.setattr(module, "ONE_PASS_BANK", one_pass)
    monkeypatch.setattr(module, "BANK_CHUNK", chunk)


@pytest.mark.parametrize(("one_pass", "chunk"), CHUNKS)
@pytest.mark.parametrize("queries_at_once", [2048, 11, 1])
def test_nearest_is_correct_across_chunks(
    queries_at_once: int, one_pass: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", queries_at_once)
    set_chunks(monkeypatch, one_pass, chunk)
    queries, bank = noise(40, 3), noise(30, 3, seed=1)
    assert torch.equal(nearest(queries, bank), torch.cdist(queries, bank).argmin(1))
    assert nearest(queries[:0], bank).shape == (0,)


def test_a_large_bank_is_searched_in_two_passes() -> None:
    queries, bank = noise(300, 16), noise(5000, 16, seed=1)
    assert torch.equal(nearest(queries, bank), torch.cdist(queries.double(), bank.double()).argmin(1))


@pytest.mark.parametrize("compiling", [False, True])
def test_an_exported_graph_has_no_sizes_that_depend_on_values(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunks(monkeypatch, 7, 7)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    counted = mock.Mock(wraps=torch.bincount)
    monkeypatch.setattr(torch, "bincount", counted)
    queries, bank = noise(40, 3), noise(30, 3, seed=1)
    assert torch.equal(nearest(queries, bank), torch.cdist(queries, bank).argmin(1))
    assert counted.call_count == (0 if compiling else 1)


@pytest.mark.parametrize(("one_pass", "chunk"), [*CHUNKS, (1, 2)])
def test_of_equal_vectors_the_first_is_the_nearest(one_pass: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunks(monkeypatch, one_pass, chunk)
    bank = torch.tensor([[5.0], [1.0], [1.0], [1.0]])
    assert nearest(torch.tensor([[0.0], [9.0]]), bank).tolist() == [1, 0]
