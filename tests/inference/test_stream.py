"""The inference engine: order, batches, errors and memory of a stream of images."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from metalad.data.images import read_image
from metalad.detectors.inference import DetectorEngine
from metalad.inference.stream import (
    InferredImage,
    Predictor,
    Threads,
    UnreadableImage,
    default_batch_size,
    infer_one,
    infer_stream,
)
from metalad.methods.metal_features import MetalFeatures, MetalFeaturesConfig
from metalad.nn import parallel
from metalad.pipelines.load import load
from metalad.pipelines.predict.saving import Writer, load_source
from metalad.pipelines.predict.sources import Source
from metalad.runtime.errors import ImageError
from tests.cookies import cookies
from tests.noise import draw, noise_run

Item = InferredImage[int] | UnreadableImage[int]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(load(noise_run(tmp_path_factory.mktemp("run")), device="cpu").opened.engine, ("raw",), 4)


def noise(seed: int) -> UInt8[np.ndarray, "height width 3"]:
    if seed % 5 == 3:
        raise ImageError(Path(f"{seed}.png"), "it is damaged")
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)


def same(item: Item) -> Item:
    return item


def scores(items: Iterator[Item]) -> list[float | str]:
    return [item.scores["raw"] if isinstance(item, InferredImage) else item.error.reason for item in items]


@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_results_are_in_order_and_unreadable_images_keep_their_position(predictor: Predictor, count: int) -> None:
    found = list(infer_stream(predictor, range(count), noise, same))
    assert [item.source for item in found] == list(range(count))
    for item in found:
        assert isinstance(item, UnreadableImage) == (item.source % 5 == 3)
        if isinstance(item, InferredImage):
            assert item.decoded.size == (20, 30)
            assert item.maps["raw"].shape == (32, 32)
            np.testing.assert_array_equal(item.decoded.load(), noise(item.source))
            assert item.reconstruction is not None


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_does_not_change_a_bit(predictor: Predictor, workers: int) -> None:
    expected = [scores(infer_stream(predictor, [seed], noise, same, Threads(1, 1)))[0] for seed in range(12)]
    assert scores(infer_stream(predictor, range(12), noise, same, Threads(workers, 1))) == expected
    assert len(set(expected)) == 11  # ten scores, and one reason


def test_one_image_has_the_score_of_the_stream(predictor: Predictor) -> None:
    one = infer_one(predictor, 7, lambda: noise(7))
    assert [one.scores["raw"]] == scores(infer_stream(predictor, [7], noise, same))
    with pytest.raises(ImageError, match=r"cannot read 3\.png: it is damaged"):
        infer_one(predictor, 3, lambda: noise(3))


def test_a_large_image_alone_is_divided_among_threads_and_keeps_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (384, 352)
    detector = MetalFeatures(MetalFeaturesConfig(image_size=size, codebook_size=40, copies=0)).eval()
    detector.fit(cookies(3, size), seed=0)
    of_large = Predictor(DetectorEngine(detector), ("calibrated",), 1)
    image = cookies(4, size)[3]
    pools = 0

    class Counted(ThreadPoolExecutor):
        def __init__(self, *arguments: Any) -> None:
            nonlocal pools
            pools += 1
            super().__init__(*arguments)

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Counted)
    expected = next(infer_stream(of_large, [0], lambda _: image, same, Threads(1, 1)))
    alone = infer_one(of_large, 0, lambda: image, Threads(1, 1))
    assert pools == 0
    divided = infer_one(of_large, 0, lambda: image, Threads(2, 1))
    assert pools > 0
    assert isinstance(expected, InferredImage)
    for found in (alone, divided):
        assert found.scores == expected.scores
        np.testing.assert_array_equal(found.maps["calibrated"], expected.maps["calibrated"])


def test_the_number_of_torch_threads_is_restored(predictor: Predictor) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        list(infer_stream(predictor, range(3), noise, same, Threads(2, 1)))
        assert torch.get_num_threads() == 3
        infer_one(predictor, 0, lambda: noise(0), Threads(2, 1))
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            list(infer_stream(predictor, range(3), lambda _: 1 // 0, same, Threads(2, 1)))  # type: ignore[arg-type,return-value]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_bug_in_the_caller_stops_the_stream_and_its_threads(predictor: Predictor) -> None:
    def fail(item: Item) -> Item:
        if item.source == 2:
            raise ZeroDivisionError
        return item

    stream = infer_stream(predictor, range(100), noise, fail)
    assert [next(stream).source, next(stream).source] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("metalad")]


@pytest.mark.parametrize(("threads", "expected"), [(1, (1, 1)), (2, (2, 1)), (8, (8, 1)), (20, (8, 2)), (64, (8, 8))])
def test_the_threads_of_torch_are_divided_among_the_workers(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, threads: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert Threads.of(predictor.engine) == Threads(*expected)


def test_the_default_batch_size_is_1_on_a_cpu() -> None:
    assert (default_batch_size("cpu"), default_batch_size("cuda")) == (1, 16)


# Memory


@pytest.mark.parametrize("count", [20, 60])
def test_images_in_memory_are_bounded_by_the_batch_size_for_any_number_of_images(
    predictor: Predictor, tmp_path: Path, count: int
) -> None:
    batch_size, alive, most, read = 3, 0, 0, 0
    lock = threading.Lock()
    image = draw(tmp_path / "x.png")

    def forget() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def counting(_source: Source) -> UInt8[np.ndarray, "height width 3"]:
        nonlocal alive, most, read
        pixels = read_image(image)
        weakref.finalize(pixels, forget)
        with lock:
            alive, read = alive + 1, read + 1
            most = max(most, alive)
        return pixels

    sources = (Source(image, f"{index}") for index in range(count))
    writer = Writer(tmp_path / "out", "raw", 1.0, maps=False)
    predictor = writer.predictor(predictor.engine, batch_size)
    for index, _ in enumerate(infer_stream(predictor, sources, counting, writer.write, Threads(2, 1))):
        assert read <= index + 5 * batch_size
    assert read == count
    assert batch_size < most <= 5 * batch_size
    gc.collect()
    assert alive == 0


def test_sources_are_taken_when_they_are_needed(predictor: Predictor, tmp_path: Path) -> None:
    image, taken = draw(tmp_path / "x.png"), 0

    def endless() -> Iterator[Source]:
        nonlocal taken
        while True:
            taken += 1
            yield Source(image, f"{taken}")

    writer = Writer(tmp_path / "out", "raw", 1.0)
    results = infer_stream(writer.predictor(predictor.engine, 3), endless(), load_source, writer.write, Threads(8, 1))
    for _ in range(5):
        next(results)
    results.close()
    assert taken <= 5 + 8 * (3 + 8)
