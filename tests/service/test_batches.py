"""Batches on a GPU: the images of threads that wait are scored together, each with its own result."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import metalad
from metalad.inference.engine import Engine, Inference
from metalad.inference.model import ScoringModel
from metalad.runtime.choices import Scoring
from metalad.service.batches import Scorer
from tests.service.pictures import picture


class GpuEngine(Engine):
    """The engine of a model, under the name of another device; notes how many images of a batch are used."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.broken = engine, False
        self.sizes: list[int] = []
        self.entered, self.release = threading.Event(), threading.Event()

    @property
    def image_size(self) -> tuple[int, int]:
        return self.engine.image_size

    @property
    def device_type(self) -> str:
        return "cuda"

    def infer(self, pixels: np.ndarray, scorings: Sequence[Scoring]) -> Inference:
        self.entered.set()
        self.release.wait(10)
        if self.broken:
            raise RuntimeError("out of memory")
        self.sizes.append(int(pixels.any(axis=(1, 2, 3)).sum()))
        assert len(pixels) == 16  # always full: another size could have other last bits
        return self.engine.infer(pixels, scorings)

    def threads(self) -> int:
        return self.engine.threads()

    def use_threads(self, count: int) -> None:
        self.engine.use_threads(count)


class GpuModel(ScoringModel):
    """A model whose engine is a `GpuEngine`."""

    def __init__(self, opened: ScoringModel) -> None:
        self._opened, self._engine = opened, GpuEngine(opened.engine)
        self.header, self.path = opened.header, None

    @property
    def engine(self) -> GpuEngine:
        return self._engine

    def normal_scores(self, scoring: Scoring) -> np.ndarray:
        return self._opened.normal_scores(scoring)


@pytest.fixture
def gpu(model: metalad.Model) -> tuple[Scorer, GpuEngine]:
    served = GpuModel(model.opened)
    return Scorer(served), served.engine


def test_images_that_wait_for_the_gpu_are_scored_together_each_with_its_own_result(
    model: metalad.Model, gpu: tuple[Scorer, GpuEngine]
) -> None:
    scorer, engine = gpu
    images = [picture(seed) for seed in range(40)]
    expected = [model.predict(image, batch_size=16).score for image in images]
    with ThreadPoolExecutor(40) as pool:
        first = pool.submit(scorer.score, images[0], None)
        assert engine.entered.wait(10)
        others = [pool.submit(scorer.score, image, 3.0) for image in images[1:]]
        while len(scorer._waiting) < 39:
            time.sleep(0.005)
        engine.release.set()
        results = [first.result(), *(other.result() for other in others)]
    assert [result.score for result in results] == expected
    assert engine.sizes == [1, 16, 16, 7]
    assert [result.threshold for result in results] == [model.threshold] + [3.0] * 39
    assert results[5].overlay().size == (80, 60)


def test_a_failed_batch_is_an_error_of_each_of_its_images_alone(gpu: tuple[Scorer, GpuEngine]) -> None:
    scorer, engine = gpu
    engine.release.set()
    engine.broken = True
    with ThreadPoolExecutor(3) as pool:
        failed = [pool.submit(scorer.score, picture(seed), None) for seed in range(3)]
        assert all("out of memory" in str(future.exception()) for future in failed)
    engine.broken = False
    assert scorer.score(picture(0), None).score > 0
