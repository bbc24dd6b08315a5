"""Let a model score pictures before it is served, so that its memory has its final size from the start."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from metalad.inference.engine import Engine
from metalad.inference.stream import Threads
from metalad.runtime.errors import MetaladError, ModelFileError
from metalad.service.batches import Scorer

ROUNDS = 3
"""Engines allocate in the first call, plan the memory of the next ones by it, and allocate again."""


def warm_up(scorer: Scorer, engine: Engine, path: Path) -> None:
    """Score black pictures of the model's size in as many threads at once as the service has.

    A model that was loaded, but cannot score, is found here, too. path: of the model, for errors.

    Raises:
        ModelFileError: the model cannot score a picture.
    """
    picture = np.zeros((*engine.image_size, 3), np.uint8)
    workers = Threads.of(engine).workers
    together = threading.Barrier(workers)

    def score() -> None:
        try:
            for _ in range(ROUNDS):
                together.wait()
                scorer.score(picture, None)
        except BaseException:
            together.abort()  # the other threads do not wait for this one
            raise

    with ThreadPoolExecutor(workers, "metalad-warm-up") as pool:
        errors = [future.exception() for future in [pool.submit(score) for _ in range(workers)]]
    for error in errors:
        if isinstance(error, threading.BrokenBarrierError) or error is None:
            continue
        if isinstance(error, MetaladError | MemoryError):
            raise error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelFileError(f"{path}: the model was loaded, but cannot score a picture ({reason})") from error
