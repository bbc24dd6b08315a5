"""The comparison of an exported file with its detector, by engines with given results."""

from collections.abc import Sequence

import numpy as np
import pytest

from metalad.exporting.comparison import compare_engines
from metalad.inference.engine import Engine, Inference
from metalad.runtime.choices import Scoring

PIXELS = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)


class Fake(Engine):
    """Gives the image whose pixels are i the i-th score and map."""

    image_size = (4, 4)
    device_type = "cpu"

    def __init__(self, scores: Sequence[float], maps: Sequence[float]) -> None:
        self.scores, self.maps = scores, maps

    def threads(self) -> int:
        return 1

    def use_threads(self, count: int) -> None: ...

    def infer(self, pixels: np.ndarray, scorings: Sequence[Scoring]) -> Inference:
        number = int(pixels.max())
        score = np.array([self.scores[number]], np.float32)
        anomaly_map = np.full((1, 4, 4), self.maps[number], np.float32)
        return Inference(dict.fromkeys(scorings, score), dict.fromkeys(scorings, anomaly_map))


@pytest.mark.parametrize("threshold", [0.5, 1e15])
def test_a_map_is_compared_with_the_highest_score_whatever_the_threshold(threshold: float) -> None:
    """A threshold that is extrapolated from few images would hide any difference."""
    trained, exported = Fake([0.5, 1.0, 2.0], [0.25, 1.0, 2.0]), Fake([0.5, 1.0, 2.0], [0.5, 1.0, 2.0])
    agreement = compare_engines(trained, exported, PIXELS, "calibrated", threshold)
    assert agreement.difference == 0
    assert agreement.map_difference == 0.125
    assert agreement.changed_verdicts == 0


def test_a_map_that_is_no_number_differs_by_infinity() -> None:
    trained, exported = Fake([1, 1, 1], [1, 1, 1]), Fake([1, 1, 1], [1, np.nan, 1])
    assert compare_engines(trained, exported, PIXELS, "calibrated", 2.0).map_difference == np.inf


def test_a_changed_verdict_is_counted() -> None:
    trained, exported = Fake([1, 1, 1.999], [0, 0, 0]), Fake([1, 1, 2.001], [0, 0, 0])
    agreement = compare_engines(trained, exported, PIXELS, "calibrated", 2.0)
    assert agreement.changed_verdicts == 1
    assert agreement.worst == 2
    assert agreement.difference == pytest.approx(0.002 / 1.999, rel=1e-3)
