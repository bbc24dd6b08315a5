"""Parts of an image that are computed in several threads have the values of one thread, to the last bit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from metalad.detectors.density.nearest import QUERIES_AT_ONCE, nearest
from metalad.nn import backbone_tiles
from metalad.nn.backbone_tiles import tiled_features
from metalad.nn.backbones import Backbone
from metalad.nn.parallel import each_part, threads_for_parts
from metalad.nn.pixels import to_batch
from tests.cookies import cookies


def test_results_are_in_order_and_come_from_several_threads() -> None:
    together = threading.Barrier(3, timeout=30)  # passes only if three parts are computed at once

    def computed(part: int) -> int:
        together.wait()
        return part

    with threads_for_parts(3):
        assert list(each_part(computed, range(6))) == list(range(6))
    calling = threading.get_ident()
    assert list(each_part(lambda _: threading.get_ident(), range(3))) == [calling] * 3


def test_parts_are_computed_without_gradients_and_with_the_threads_of_the_caller() -> None:
    before = torch.get_num_threads()

    def state(_: int) -> tuple[bool, bool, int]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()

    with threads_for_parts(2):
        with torch.inference_mode():
            assert set(each_part(state, range(4))) == {(False, True, before)}
        with torch.no_grad():
            assert set(each_part(state, range(4))) == {(False, False, before)}
        assert set(each_part(state, range(4))) == {(True, False, before)}
    assert torch.get_num_threads() == before


def test_callers_at_once_divide_the_threads() -> None:
    entered, left = threading.Event(), threading.Event()

    def other_caller() -> None:
        with threads_for_parts(2):
            entered.set()
            left.wait(30)

    other = threading.Thread(target=other_caller)
    other.start()
    assert entered.wait(30)
    here = threading.get_ident()
    with threads_for_parts(2):
        assert set(each_part(lambda _: threading.get_ident(), range(4))) == {here}
    left.set()
    other.join()
    with threads_for_parts(2):
        assert here not in set(each_part(lambda _: threading.get_ident(), range(4)))


def test_parts_of_parts_are_computed_by_their_own_thread() -> None:
    def inner(_: int) -> set[int]:
        return {threading.get_ident(), *each_part(lambda _: threading.get_ident(), range(3))}

    with threads_for_parts(2):
        assert all(len(threads) == 1 for threads in each_part(inner, range(3)))


def test_parts_are_computed_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refused)
    with threads_for_parts(2):
        assert list(each_part(lambda part: 2 * part, range(3))) == [0, 2, 4]


def test_an_error_of_a_part_is_that_of_the_whole() -> None:
    with threads_for_parts(2), pytest.raises(ZeroDivisionError):
        list(each_part(lambda part: 1 // part, [1, 0, 1]))


def test_tiles_and_nearest_neighbors_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_tiles, "WHOLE", 32 * 32)
    monkeypatch.setattr(backbone_tiles, "TILE", 48)
    backbone = Backbone("lite0", ("s4", "s8", "s16"))
    backbone.load()
    images = to_batch(cookies(1, (160, 224)))
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3 * QUERIES_AT_ONCE + 5, 16, generator=generator)
    bank = torch.randn(100, 16, generator=generator)
    with torch.inference_mode():
        maps = dict(tiled_features(backbone.network, images))
        index = nearest(queries, bank)
        for threads in (2, 3):
            with threads_for_parts(threads):
                for tap, values in tiled_features(backbone.network, images):
                    assert torch.equal(values, maps[tap])
                assert torch.equal(nearest(queries, bank), index)
