"""Inference on a stream of images: decode, infer and finish in one pool of threads, in memory that does not grow.

Every public function that scores images goes through here, so that one image gets the same score, to the last bit,
from a file, an array or the command line.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8

from metalad.data.framing import Framing
from metalad.inference.engine import Engine
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ImageError

MAX_WORKERS = 8
"""Few, because each may hold a large image at full resolution."""
HELD_PIXELS = 1_000_000
"""A larger image is decoded a second time when it is needed again, instead of being held until then."""

Source = TypeVar("Source")
Item = TypeVar("Item")
Output = TypeVar("Output")
Image = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True, eq=False)
class DecodedImage(Generic[Source]):
    """A decoded image.

    pixels: at the model's size. size: the image's own height and width. load: returns the image at its own size.
    framing: how the image became `pixels`.
    """

    source: Source
    pixels: UInt8[np.ndarray, "height width 3"]
    size: tuple[int, int]
    load: Callable[[], Image]
    framing: Framing


@dataclass(frozen=True, eq=False)
class UnreadableImage(Generic[Source]):
    """An image that could not be decoded."""

    source: Source
    error: ImageError


@dataclass(frozen=True, eq=False)
class InferredImage(Generic[Source]):
    """An image with its scores and maps, by scoring, and its reconstruction, if any; all of the model's whole image.

    `own_map`, `own_maps` and `own_reconstruction` are of the image alone.
    """

    decoded: DecodedImage[Source]
    scores: Mapping[Scoring, float]
    maps: Mapping[Scoring, Float32[np.ndarray, "height width"]]
    reconstruction: Image | None

    def own_map(self, scoring: Scoring) -> Float32[np.ndarray, "height width"]:
        """Return a map at the image's own size."""
        return self.decoded.framing.at_own_size(self.maps[scoring], self.decoded.size)

    @property
    def own_maps(self) -> Mapping[Scoring, Float32[np.ndarray, "height width"]]:
        """The maps at the model's resolution, without what continues the image beyond its border."""
        decoded = self.decoded
        return {name: decoded.framing.cut(each, decoded.size) for name, each in self.maps.items()}

    @property
    def own_reconstruction(self) -> Image | None:
        """The reconstruction at the image's own size."""
        decoded = self.decoded
        if self.reconstruction is None:
            return None
        return decoded.framing.picture_at_own_size(self.reconstruction, decoded.size)

    @property
    def source(self) -> Source:
        """What the image was decoded from."""
        return self.decoded.source


@dataclass(frozen=True)
class Threads:
    """Threads of the pool, and threads of the engine for each of them.

    The latter decide the last bits of a score; the former do not.
    """

    workers: int
    engine_threads: int

    @classmethod
    def of(cls, engine: Engine) -> "Threads":
        """Divide the engine's threads, by default one a core, among at most `MAX_WORKERS` workers."""
        cores = engine.threads()
        workers = min(cores, MAX_WORKERS)
        # Threads of one matrix product that wait for each other cost more than half of the time of busy cores.
        return cls(workers, max(1, cores // workers))


@dataclass(frozen=True, eq=False)
class Predictor:
    """An engine, the scorings to compute, and the number of images in a batch."""

    engine: Engine
    scorings: Sequence[Scoring]
    batch_size: int

    @property
    def framing(self) -> Framing:
        """How images become those that the engine takes."""
        return self.engine.framing

    def infer(
        self, items: Sequence[DecodedImage[Source] | UnreadableImage[Source]]
    ) -> list[InferredImage[Source] | UnreadableImage[Source]]:
        """Run the model on a batch; what could not be read is passed on in its place."""
        inferred = iter(self._run([item for item in items if isinstance(item, DecodedImage)]))
        return [item if isinstance(item, UnreadableImage) else next(inferred) for item in items]

    def _run(self, images: Sequence[DecodedImage[Source]]) -> Iterator[InferredImage[Source]]:
        if not images:
            return
        # A batch is always full: for another size, libraries may choose another routine, with other last bits.
        padded = np.zeros((self.batch_size, *self.framing.size, 3), np.uint8)
        for index, image in enumerate(images):
            padded[index] = image.pixels
        found = self.engine.infer(padded, self.scorings)
        for index, image in enumerate(images):
            yield InferredImage(
                image,
                {scoring: float(found.scores[scoring][index]) for scoring in self.scorings},
                {scoring: found.maps[scoring][index] for scoring in self.scorings},
                None if found.reconstruction is None else found.reconstruction[index],
            )


def default_batch_size(device_type: str) -> int:
    """Return 1 on a CPU, where a batch saves no time and each worker infers its own images; 16 on a GPU."""
    return 1 if device_type == "cpu" else 16


def decode(
    source: Source, load: Callable[[], Image], framing: Framing
) -> DecodedImage[Source] | UnreadableImage[Source]:
    """Decode an image and bring it to the model's size."""
    try:
        image = load()
    except ImageError as error:
        return UnreadableImage(source, error)
    height, width, _ = image.shape
    # A partial, not a lambda: results that can draw their overlay are pickled.
    again = partial(_held, image) if height * width <= HELD_PIXELS else load
    return DecodedImage(source, framing.place(image), (height, width), again, framing)


def _held(image: Image) -> Image:
    return image


def infer_stream(
    predictor: Predictor,
    sources: Iterable[Source],
    load: Callable[[Source], Image],
    finish: Callable[[InferredImage[Source] | UnreadableImage[Source]], Output],
    threads: Threads | None = None,
) -> Generator[Output, None, None]:
    """Decode and infer images, and yield what `finish` returns for each, in order.

    Args:
        predictor: runs the model.
        sources: whatever `load` reads an image from; taken a few at a time.
        load: returns an image as RGB bytes, or raises `ImageError`; called in worker threads.
        finish: is called in worker threads, for unreadable images too.
        threads: those of the whole machine by default.
    """
    engine = predictor.engine
    threads = threads or Threads.of(engine)
    own_threads = engine.threads()
    pool = ThreadPoolExecutor(threads.workers, "metalad", engine.use_threads, (threads.engine_threads,))
    ahead = max(predictor.batch_size, threads.workers)

    def decoded(source: Source) -> DecodedImage[Source] | UnreadableImage[Source]:
        return decode(source, partial(load, source), predictor.framing)

    try:
        read = _in_order(pool, decoded, sources, ahead)
        batches = _in_order(pool, predictor.infer, _batches(read, predictor.batch_size), threads.workers)
        yield from _in_order(pool, finish, chain.from_iterable(batches), ahead)
    finally:
        pool.shutdown(cancel_futures=True)
        engine.use_threads(own_threads)  # threads started later would inherit the workers' number


def infer_one(
    predictor: Predictor, source: Source, load: Callable[[], Image], threads: Threads | None = None
) -> InferredImage[Source]:
    """Decode and infer one image, a large one in several threads; the score is that of `infer_stream`.

    Raises:
        ImageError: the image cannot be read.
    """
    engine = predictor.engine
    threads = threads or Threads.of(engine)
    own_threads = engine.threads()
    decoded = decode(source, load, predictor.framing)
    if isinstance(decoded, UnreadableImage):
        raise decoded.error
    engine.use_threads(threads.engine_threads)
    try:
        with engine.divides_parts(threads.workers):
            return next(predictor._run([decoded]))
    finally:
        engine.use_threads(own_threads)


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(islice(items, size)):
        yield batch


def _in_order(
    pool: Executor, function: Callable[[Item], Output], items: Iterable[Item], ahead: int
) -> Iterator[Output]:
    """Yield `function` of each item in order, computed by the pool at most `ahead` items early."""
    waiting: deque[Future[Output]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
