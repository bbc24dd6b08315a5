"""Score one image in a worker thread: alone on a CPU, in a batch with those of other threads on a GPU."""

import dataclasses
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from metalad.pipelines.model import Model
    from metalad.results.prediction import Result

MAX_BATCH = 16
"""Images of a batch on a GPU, as in `metalad predict`."""


class Scorer:
    """Scores images with one model; threads share it.

    On a CPU a batch saves no time, and each thread scores its own image. On a GPU the thread that gets the GPU scores
    the images of all threads that wait for it, at most `MAX_BATCH`.
    """

    def __init__(self, model: "Model") -> None:
        self._model = model
        self.batches = model.opened.engine.device_type != "cpu"
        self._waiting: deque[tuple[UInt8[np.ndarray, "_ _ 3"], Future[Any]]] = deque()
        self._gpu = threading.Lock()

    def score(self, image: UInt8[np.ndarray, "height width 3"], threshold: float | None) -> "Result":
        """Return the result for an image; the score is that of `metalad predict`."""
        result: Result
        if not self.batches:
            result = self._model.predict(image, threshold=threshold)
            return result
        answer: Future[Any] = Future()
        self._waiting.append((image, answer))
        while not answer.done():
            with self._gpu:
                if not answer.done():
                    self._score_waiting()
        result = answer.result()
        return result if threshold is None else dataclasses.replace(result, threshold=threshold)

    def _score_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
        try:
            results = self._model.predict([image for image, _ in batch], batch_size=MAX_BATCH)
        except BaseException as error:
            for _, answer in batch:
                answer.set_exception(error)
        else:
            for (_, answer), result in zip(batch, results, strict=True):
                answer.set_result(result)
