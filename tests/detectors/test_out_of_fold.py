import math

import numpy as np
import pytest
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from metalad.detectors import out_of_fold as room
from metalad.detectors.base import SCORINGS, Detector, DetectorConfig
from metalad.detectors.calibration import Calibration
from metalad.detectors.out_of_fold import _raised_to_held_out_level, calibrate
from metalad.detectors.residuals import Residuals
from metalad.detectors.threshold import threshold
from metalad.nn.pixels import to_batch

SIZE = 16
KNOWN, NEW = 0, 255
"""The red of an image's first pixel says whether the stub learnt from it."""


class Stub(Detector):
    """Expects grey; what it learnt from is rebuilt with an error `gain` times as large."""

    name = "stub"

    def __init__(self, gain: float) -> None:
        super().__init__(DetectorConfig(image_size=(SIZE, SIZE), smoothing_sigma=1.0))
        self.gain = gain

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        known = images[:, :1, :1, :1] == 0
        return Residuals((images - 0.5) * torch.where(known, self.gain, 1.0), torch.full_like(images, 0.5))


def pixels(seed: int, images: int, mark: int) -> np.ndarray:
    """Noise of a strength that differs from image to image."""
    rng = np.random.default_rng(seed)
    strength = rng.lognormal(3, 0.3, (images, 1, 1, 1))
    noise = 127.5 + strength * rng.standard_normal((images, SIZE, SIZE, 3))
    found = noise.clip(0, 255).astype(np.uint8)
    found[:, 0, 0, 0] = mark
    return found


def scores(detector: Detector) -> list[np.ndarray]:
    return [detector.get_buffer(f"normal_scores_{scoring}").numpy() for scoring in SCORINGS]


def test_what_is_known_by_heart_says_nothing() -> None:
    held_out, first, second = pixels(0, 6, NEW), Stub(0.01), Stub(0.0)
    calibrate(first, pixels(1, 20, KNOWN), held_out)
    calibrate(second, pixels(2, 3, KNOWN), held_out)
    for one, other in zip(scores(first), scores(second), strict=True):
        assert len(one) == 6
        np.testing.assert_array_equal(one, other)
    assert first.calibration is not None
    assert second.calibration is not None
    assert torch.equal(first.calibration.whitening, second.calibration.whitening)


def test_training_images_are_raised_to_the_level_of_new_ones() -> None:
    detector = Stub(0.8)
    calibrate(detector, pixels(1, 20, KNOWN), pixels(0, 6, NEW))
    for found in scores(detector):
        logs = np.log(found)
        assert len(logs) == 26
        assert np.median(logs[:20]) == pytest.approx(np.median(logs[20:]), abs=1e-4)


def test_training_scores_are_kept_where_a_method_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, training = Stub(0.8), pixels(1, 20, KNOWN)
    monkeypatch.setattr(detector, "training_scores_are_out_of_fold", lambda scoring: scoring == "raw")
    calibrate(detector, training, pixels(0, 6, NEW))
    with torch.no_grad():
        own = detector.image_scores(detector.residuals(to_batch(training)), "raw")
    raw, calibrated = (np.log(scores(detector)[SCORINGS.index(scoring)]) for scoring in ("raw", "calibrated"))
    np.testing.assert_allclose(raw[:20], own.log().numpy(), atol=1e-5)
    assert np.median(calibrated[:20]) == pytest.approx(np.median(calibrated[20:]), abs=1e-4)


def test_training_images_are_never_lowered() -> None:
    """Some methods rebuild new images better; a threshold should not fall for it."""
    detector, training = Stub(1.5), pixels(1, 20, KNOWN)
    calibrate(detector, training, pixels(0, 6, NEW))
    with torch.no_grad():
        own = detector.image_scores(detector.residuals(to_batch(training)), "raw")
    np.testing.assert_allclose(scores(detector)[SCORINGS.index("raw")][:20], own, rtol=1e-5)


def test_no_image_is_scored_by_moments_it_took_part_in() -> None:
    """Five held-out images in five folds: each is scored by what the other four gave."""
    detector, held_out = Stub(0.0), pixels(0, 5, NEW)
    summary = calibrate(detector, pixels(1, 9, KNOWN), held_out)
    residuals = detector.residuals(to_batch(held_out))
    expected = []
    for left_out in range(5):
        others = torch.arange(5) != left_out
        detector.calibration = Calibration.fit(
            summary.kind, Residuals(*(part[others] for part in residuals if part is not None))
        )
        expected.append(float(detector(to_batch(held_out[left_out : left_out + 1])).score))
    np.testing.assert_allclose(scores(detector)[SCORINGS.index("calibrated")], expected, rtol=1e-5)


@pytest.mark.parametrize("gain", [0.0, 0.3, 0.8, 1.5])
@pytest.mark.parametrize(("known", "new"), [(1, 1), (2, 1), (5, 1), (1, 2), (12, 2)])
def test_few_images_are_enough(known: int, new: int, gain: float) -> None:
    detector = Stub(gain)
    calibrate(detector, pixels(1, known, KNOWN), pixels(0, new, NEW))
    for scoring, found in zip(SCORINGS, scores(detector), strict=True):
        assert len(found) >= 2
        assert (found > 0).all()
        assert 0 < detector.threshold(0.01, scoring) < math.inf


def test_images_without_any_residual_get_positive_scores() -> None:
    grey = np.full((4, SIZE, SIZE, 3), 128, np.uint8)
    detector = Stub(1.0)
    detector.gain = 0.0
    calibrate(detector, grey * np.uint8(0), grey * np.uint8(0))
    assert all((found > 0).all() for found in scores(detector))


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Stub(0.8), Stub(0.8)
    for detector, batch_size in ((one, 2), (other, 32)):
        monkeypatch.setattr("metalad.detectors.base.BATCH_SIZE", batch_size)
        calibrate(detector, pixels(1, 7, KNOWN), pixels(0, 3, NEW))
    for first, second in zip(scores(one), scores(other), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5)


def test_of_many_images_some_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_IMAGES", 8)
    detector = Stub(0.8)
    calibrate(detector, pixels(1, 50, KNOWN), pixels(0, 20, NEW))
    assert [len(found) for found in scores(detector)] == [16, 16]


@pytest.mark.parametrize(("known", "new"), [(10, 1), (27, 3), (90, 10)])
def test_good_images_exceed_the_threshold_no_oftener_than_wanted(known: int, new: int) -> None:
    """Over many training sets, where training images score a third of what new ones do."""
    rng = np.random.default_rng(new)
    fresh = np.arange(known + new) >= known
    level = np.where(fresh, 0.0, -math.log(3))
    thresholds = [
        threshold(_raised_to_held_out_level(np.exp(level + rng.standard_normal(known + new)), fresh).numpy(), 0.05)
        for _ in range(1000)
    ]
    false_alarms = stats.lognorm(1).sf(thresholds)
    error = false_alarms.std() / math.sqrt(len(false_alarms))
    # The level is known from few images, the spread from all: without widening, alarms would be too many. The
    # greater of two thresholds, each right by itself, makes alarms somewhat rarer than wanted.
    assert 0.5 * 0.05 < false_alarms.mean() < 0.05 + 4 * error + 0.005
