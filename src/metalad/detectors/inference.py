"""Inference: from images to scores and maps, in the one place where all callers meet."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from metalad.detectors.base import Detector, Scoring
from metalad.nn.pixels import to_batch


class Inference(NamedTuple):
    """What a detector computes for a batch, as arrays.

    scores: one number an image, by scoring; higher = more anomalous.
    maps: one number a pixel at the model's resolution, by scoring.
    reconstruction: RGB at the resolution of the residuals, for a method that makes one.
    """

    scores: Mapping[Scoring, Float32[np.ndarray, " batch"]]
    maps: Mapping[Scoring, Float32[np.ndarray, "batch height width"]]
    reconstruction: UInt8[np.ndarray, "batch down across 3"] | None


def infer(
    detector: Detector, pixels: UInt8[np.ndarray, "batch height width 3"], scorings: Sequence[Scoring]
) -> Inference:
    """Compute residuals once, and scores and maps by each scoring.

    pixels: images of the detector's `image_size`.

    Raises:
        RuntimeError: the detector was not fitted, or not calibrated for a scoring.
    """
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
