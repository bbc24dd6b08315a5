"""Score one image in a worker thread: alone on a CPU, in a batch with those of other threads on a GPU."""

import threading
from collections import deque
from concurrent.futures import Future

import numpy as np
from jaxtyping import UInt8

from metalad.inference.model import ScoringModel
from metalad.inference.stream import (
    DecodedImage,
    InferredImage,
    Predictor,
    Threads,
    UnreadableImage,
    decode,
    default_batch_size,
    infer_one,
)
from metalad.results.prediction import Result

Image = UInt8[np.ndarray, "_ _ 3"]


class Scorer:
    """Scores images with one model, by its own scoring; threads share it.

    On a CPU a batch saves no time, and each thread scores its own image. On a GPU the thread that gets the GPU scores
    the images of all threads that wait for it, at most as many as `metalad predict` puts into a batch.
    """

    def __init__(self, model: ScoringModel) -> None:
        self._model, self._scoring = model, model.scoring(None)
        self.batches = model.engine.device_type != "cpu"
        self._batch_size = default_batch_size(model.engine.device_type)
        self._predictor = Predictor(model.engine, (self._scoring,), self._batch_size)
        self._threads = Threads.of(model.engine)
        self._waiting: deque[tuple[DecodedImage[None], Future[InferredImage[None]]]] = deque()
        self._gpu = threading.Lock()

    def score(self, image: Image, threshold: float | None) -> Result:
        """Return the result for an image; the score is that of `metalad predict`."""
        found = self._batched(image) if self.batches else infer_one(self._predictor, None, lambda: image, self._threads)
        limit = self._model.threshold_or(threshold)
        return Result(found.scores[self._scoring], limit, found.own_map(self._scoring), None, lambda: image)

    def _batched(self, image: Image) -> InferredImage[None]:
        decoded = decode(None, lambda: image, self._predictor.framing)
        if isinstance(decoded, UnreadableImage):
            raise decoded.error
        answer: Future[InferredImage[None]] = Future()
        self._waiting.append((decoded, answer))
        while not answer.done():
            with self._gpu:
                if not answer.done():
                    self._score_waiting()
        return answer.result()

    def _score_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
        try:
            found = self._predictor.infer([decoded for decoded, _ in batch])
            for (_, answer), one in zip(batch, found, strict=True):
                assert isinstance(one, InferredImage)
                answer.set_result(one)
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
