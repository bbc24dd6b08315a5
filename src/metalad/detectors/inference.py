"""Inference by a detector: from pixels to scores and maps, in the one place where all callers meet."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from metalad.detectors.base import Detector, Scoring
from metalad.inference.engine import Engine, Inference
from metalad.nn.parallel import threads_for_parts
from metalad.nn.pixels import to_batch


@dataclass(frozen=True, eq=False)
class DetectorEngine(Engine):
    """A detector as an engine: computes residuals once, and scores and maps by each scoring."""

    detector: Detector

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the detector takes."""
        return self.detector.config.image_size

    @property
    def image_scale(self) -> float:
        """Pixels of the detector's images per pixel of an image; 0: images are resized to `image_size`."""
        return self.detector.config.image_scale

    @property
    def device_type(self) -> str:
        """The type of device of the detector."""
        return self.detector.device.type

    def infer(self, pixels: UInt8[np.ndarray, "batch height width 3"], scorings: Sequence[Scoring]) -> Inference:
        """Return scores and maps of images of `image_size` by each scoring.

        Raises:
            RuntimeError: the detector was not fitted, or not calibrated for a scoring.
        """
        detector = self.detector
        detector.require_fitted()
        with torch.inference_mode():
            images = to_batch(pixels, detector.device)
            residuals = detector.residuals(images)
            predictions = {scoring: detector.predict(images, residuals, scoring) for scoring in scorings}
            reconstruction = None
            if residuals.reconstruction is not None:
                planes = (255 * residuals.reconstruction).round().byte().numpy(force=True)
                reconstruction = np.ascontiguousarray(np.moveaxis(planes, 1, -1))
        return Inference(
            scores={scoring: prediction.score.numpy(force=True) for scoring, prediction in predictions.items()},
            maps={scoring: prediction.anomaly_map.numpy(force=True) for scoring, prediction in predictions.items()},
            reconstruction=reconstruction,
        )

    def threads(self) -> int:
        """Return torch's number of threads, by default one a core."""
        return torch.get_num_threads()

    def use_threads(self, count: int) -> None:
        """Set torch's number of threads in this thread."""
        torch.set_num_threads(count)

    def divides_parts(self, threads: int) -> AbstractContextManager[None]:
        """Return a context in which tiles and nearest neighbors of a large image are computed by so many threads."""
        return threads_for_parts(threads if self.device_type == "cpu" else 1)
