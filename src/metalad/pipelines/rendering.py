"""Pictures of one inferred test image at its own size, for reports and comparisons."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from metalad.data import Sample, read_truth
from metalad.data.images import read_image
from metalad.data.reading import Reading
from metalad.detectors.base import Detector, Scoring
from metalad.detectors.inference import DetectorEngine
from metalad.inference.stream import InferredImage, Predictor, infer_one
from metalad.visualization.overlay import draw_overlay, in_thresholds


@dataclass(frozen=True, eq=False)
class Rendering:
    """An image, its ground truth, its anomaly map and its score; higher = more anomalous.

    `truth` is None for an anomalous image without a mask, `reconstruction` for a method that makes none.
    """

    image: UInt8[np.ndarray, "height width 3"]
    truth: Bool[np.ndarray, "height width"] | None
    reconstruction: UInt8[np.ndarray, "height width 3"] | None
    anomaly_map: Float32[np.ndarray, "height width"]
    score: float

    @property
    def white_truth(self) -> UInt8[np.ndarray, "height width"] | None:
        """The ground truth as a picture, white where the image is anomalous."""
        return None if self.truth is None else self.truth.astype(np.uint8) * np.uint8(255)

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of the map's maximum."""
        row, column = divmod(int(self.anomaly_map.argmax()), self.anomaly_map.shape[1])
        return row, column

    def overlay(self, threshold: float) -> UInt8[np.ndarray, "height width 3"]:
        """Return the map over the image; see `metalad.visualization.overlay.draw_overlay`."""
        return draw_overlay(self.image, in_thresholds(self.anomaly_map, threshold))


def render(inferred: InferredImage[Any], truth: Bool[np.ndarray, "height width"] | None, scoring: Scoring) -> Rendering:
    """Return the pictures of an inferred image; `truth` is its mask.

    Raises:
        ImageError: the image must be read again, and cannot be.
    """
    image, rebuilt = inferred.decoded.load(), inferred.own_reconstruction
    return Rendering(image, truth, rebuilt, inferred.own_map(scoring), inferred.scores[scoring])


def infer_and_render(
    detector: Detector, sample: Sample, scoring: Scoring, batch_size: int, reading: Reading | None = None
) -> Rendering:
    """Infer one test image, and return its pictures; `reading` is how its file is read.

    Raises:
        ImageError: the image or its mask cannot be read. DataError: the mask does not fit its image.
    """
    predictor = Predictor(DetectorEngine(detector), (scoring,), batch_size)
    inferred = infer_one(predictor, sample, lambda: read_image(sample.path, reading))
    return render(inferred, read_truth(sample, inferred.decoded.size), scoring)
