"""What engines of exported files share: one scoring, the CPU, and threads that are fixed when the file is loaded."""

from collections.abc import Sequence

from metalad.inference.cores import usable_cores
from metalad.inference.engine import Engine
from metalad.runtime.choices import Scoring


class ExportedEngine(Engine):
    """An engine that computes scores and maps by one scoring; a derived class sets `_size` when it loads the file."""

    _size: tuple[int, int]

    def __init__(self, scoring: Scoring, image_scale: float) -> None:
        self._scoring, self._scale = scoring, image_scale

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model takes."""
        return self._size

    @property
    def image_scale(self) -> float:
        """Pixels of the model per pixel of an image; 0: images are resized to `image_size`."""
        return self._scale

    @property
    def device_type(self) -> str:
        """`cpu`."""
        return "cpu"

    def threads(self) -> int:
        """Return the number of usable cores."""
        return usable_cores()

    def use_threads(self, count: int) -> None:
        """Do nothing: the number of threads was fixed when the model was loaded."""

    def _require(self, scorings: Sequence[Scoring]) -> None:
        assert tuple(scorings) == (self._scoring,)
