"""What scores pixels: a detector in torch, or an exported file in another runtime."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from metalad.data.framing import Framing
from metalad.runtime.choices import Scoring


class Inference(NamedTuple):
    """What an engine computes for a batch, as arrays.

    scores: one number an image, by scoring; higher = more anomalous.
    maps: one number a pixel at the model's resolution, by scoring.
    reconstruction: RGB at the resolution of the residuals, for a method that makes one.
    """

    scores: Mapping[Scoring, Float32[np.ndarray, " batch"]]
    maps: Mapping[Scoring, Float32[np.ndarray, "batch height width"]]
    reconstruction: UInt8[np.ndarray, "batch down across 3"] | None = None


class Engine(ABC):
    """Computes scores and maps of pixels; several threads may call `infer` at once."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that `infer` takes."""

    @property
    def image_scale(self) -> float:
        """Pixels of `image_size` per pixel of an image; 0: images are resized to `image_size`, whatever their shape."""
        return 0.0

    @property
    def framing(self) -> Framing:
        """How images of any size become images of `image_size`."""
        return Framing(self.image_size, self.image_scale)

    @property
    @abstractmethod
    def device_type(self) -> str:
        """`cpu`, or the kind of another device."""

    @abstractmethod
    def infer(self, pixels: UInt8[np.ndarray, "batch height width 3"], scorings: Sequence[Scoring]) -> Inference:
        """Return scores and maps of images of `image_size` by each scoring."""

    @abstractmethod
    def threads(self) -> int:
        """Return the number of threads that may compute at once: by default one a core."""

    @abstractmethod
    def use_threads(self, count: int) -> None:
        """Let each call of `infer` in this thread compute with `count` threads, where the engine can change it."""

    def divides_parts(self, threads: int) -> AbstractContextManager[None]:  # noqa: ARG002 (for engines to override)
        """Return a context in which `infer`, called in this thread, divides a large image among so many threads.

        Scores stay the same to the last bit. By default nothing is divided.
        """
        return nullcontext()
