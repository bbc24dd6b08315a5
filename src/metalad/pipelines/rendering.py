"""What a detector makes of one image, at the image's own size, for pictures of it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from metalad.data import Sample, read_truth
from metalad.data.images import read_image, resize_image, resize_map
from metalad.detectors.base import Detector, Scoring
from metalad.nn.pixels import to_batch
from metalad.visualization.maps import verdict_overlay


@dataclass(frozen=True, eq=False)
class Rendering:
    """An image, its ground truth, what was made of it, and its score; a higher map is more abnormal.

    `truth` is None for an abnormal image without a mask, `reconstruction` for a method that makes none.
    """

    image: UInt8[np.ndarray, "height width 3"]
    truth: Bool[np.ndarray, "height width"] | None
    reconstruction: UInt8[np.ndarray, "height width 3"] | None
    anomaly_map: Float32[np.ndarray, "height width"]
    score: float

    @property
    def white_truth(self) -> UInt8[np.ndarray, "height width"] | None:
        """The ground truth as a picture, white where the image is abnormal."""
        return None if self.truth is None else self.truth.astype(np.uint8) * np.uint8(255)

    def overlay(self, threshold: float) -> UInt8[np.ndarray, "height width 3"]:
        """The map over the image as the threshold sees it; see `metalad.visualization.maps.verdict_overlay`."""
        return verdict_overlay(self.image, self.anomaly_map, threshold)


def render(
    detector: Detector, sample: Sample, pixels: UInt8[np.ndarray, "model_height model_width 3"], scoring: Scoring
) -> Rendering:
    """Judge one image.

    Args:
        detector: as read from a model file.
        sample: the image's file and its mask.
        pixels: the same image at the detector's size.
        scoring: by which the map and the score are made.

    Raises:
        ImageError: the image or its mask cannot be read. DataError: the mask does not fit its image.
    """
    image = read_image(sample.path)
    size = (image.shape[0], image.shape[1])
    with torch.inference_mode():
        images = to_batch(pixels[np.newaxis], detector.device)
        residuals = detector.residuals(images)
        prediction = detector.judge(images, residuals, scoring)
    rebuilt = None
    if residuals.expected is not None:
        planes = (255 * residuals.expected[0]).round().byte().numpy(force=True)
        rebuilt = resize_image(np.ascontiguousarray(np.moveaxis(planes, 0, -1)), size)
    return Rendering(
        image=image,
        truth=read_truth(sample, size),
        reconstruction=rebuilt,
        anomaly_map=resize_map(prediction.anomaly_map[0].numpy(force=True), size),
        score=float(prediction.score[0]),
    )
