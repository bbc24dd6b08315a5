"""The comparison of an exported file with the detector that it was made from, on real images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from metalad.inference.engine import Engine
from metalad.runtime.choices import Scoring
from metalad.runtime.progress import counted

SMALLEST_SCORE = 1e-12


@dataclass(frozen=True, eq=False)
class Agreement:
    """Scores of the same images by a detector and by its exported file, and how much they differ.

    expected, scores: by the detector, and by the file. threshold: that both are compared with.
    map_difference: the largest difference of a map's pixel, relative to the map's highest value or that of all scores,
        whichever is higher. Not to the threshold: an extrapolated one can be far above all scores.
    """

    expected: Float64[np.ndarray, " images"]
    scores: Float64[np.ndarray, " images"]
    threshold: float
    map_difference: float

    @property
    def differences(self) -> Float64[np.ndarray, " images"]:
        """The difference of each score, relative to the detector's; infinite where one is not a number."""
        relative = np.abs(self.scores - self.expected) / np.maximum(np.abs(self.expected), SMALLEST_SCORE)
        return np.where(np.isnan(relative), np.inf, relative)

    @property
    def worst(self) -> int:
        """The index of the image whose score differs most."""
        return int(self.differences.argmax())

    @property
    def difference(self) -> float:
        """The largest relative difference of a score."""
        return float(self.differences.max())

    @property
    def changed_verdicts(self) -> int:
        """The number of images that are above the threshold by one of the two only."""
        return int(((self.expected > self.threshold) != (self.scores > self.threshold)).sum())


def compare_engines(
    detector: Engine,
    exported: Engine,
    pixels: UInt8[np.ndarray, "images height width 3"],
    scoring: Scoring,
    threshold: float,
) -> Agreement:
    """Score images one by one with both engines."""
    scores: list[Sequence[float]] = []
    differences: list[float] = []
    peaks: list[float] = []
    for image in counted(pixels, "compare", "image", len(pixels)):
        expected, found = (engine.infer(image[None], (scoring,)) for engine in (detector, exported))
        scores.append([float(each.scores[scoring][0]) for each in (expected, found)])
        expected_map, found_map = (each.maps[scoring][0].astype(np.float64) for each in (expected, found))
        differences.append(float(np.abs(expected_map - found_map).max()))
        peaks.append(float(expected_map.max()))
    both = np.array(scores, np.float64)
    relative = np.array(differences) / np.maximum(peaks, max(both[:, 0].max(), SMALLEST_SCORE))
    map_difference = float(np.where(np.isnan(relative), np.inf, relative).max())
    return Agreement(both[:, 0], both[:, 1], threshold, map_difference)
