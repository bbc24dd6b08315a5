"""Calibration of a detector: which images it uses, out-of-fold scores, and the rate of false alarms."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from metalad.data.folds import number_of_folds
from metalad.detectors import out_of_fold
from metalad.detectors.base import SCORINGS, Detector, DetectorConfig
from metalad.detectors.calibration import Calibration
from metalad.detectors.out_of_fold import _raised_to_held_out_level, calibrate, level_of_all
from metalad.detectors.residuals import Residuals
from metalad.inference.threshold import threshold
from metalad.methods.padim import Padim, PadimConfig
from metalad.methods.variation_model import VariationModel, VariationModelConfig
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import DataError

SIZE = 16
KNOWN, NEW = 0, 255
"""The red value of an image's first pixel: whether the stub was trained on the image."""


class Stub(Detector):
    """Reconstructs every image as gray; residuals of training images are multiplied by `gain`."""

    name = "stub"

    def __init__(self, gain: float) -> None:
        super().__init__(DetectorConfig(image_size=(SIZE, SIZE), smoothing_sigma=1.0))
        self.gain = gain

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        known = images[:, :1, :1, :1] == 0
        return Residuals((images - 0.5) * torch.where(known, self.gain, 1.0), torch.full_like(images, 0.5))


class SelfCalibrated(Stub):
    """The same with a raw map that is calibrated already."""

    self_calibrated = True


def pixels(seed: int, images: int, mark: int) -> np.ndarray:
    """Return noise images of different standard deviations."""
    rng = np.random.default_rng(seed)
    deviation = rng.lognormal(3, 0.3, (images, 1, 1, 1))
    noise = 127.5 + deviation * rng.standard_normal((images, SIZE, SIZE, 3))
    images_ = noise.clip(0, 255).astype(np.uint8)
    images_[:, 0, 0, 0] = mark
    return images_


def scores(detector: Detector) -> list[np.ndarray]:
    return [detector.get_buffer(f"normal_scores_{scoring}").numpy() for scoring in SCORINGS]


def test_training_images_are_not_used_if_the_detector_overfits_them() -> None:
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
    for values in scores(detector):
        logs = np.log(values)
        assert len(logs) == 26
        assert np.median(logs[:20]) == pytest.approx(np.median(logs[20:]), abs=1e-4)


def test_training_scores_are_not_raised_if_they_are_out_of_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, training = Stub(0.8), pixels(1, 20, KNOWN)
    monkeypatch.setattr(detector, "training_scores_are_out_of_fold", lambda scoring: scoring == "raw")
    calibrate(detector, training, pixels(0, 6, NEW))
    with torch.no_grad():
        own = detector.image_scores(detector.residuals(to_batch(training)), "raw")
    raw, calibrated = (np.log(scores(detector)[SCORINGS.index(scoring)]) for scoring in ("raw", "calibrated"))
    np.testing.assert_allclose(raw[:20], own.log().numpy(), atol=1e-5)
    assert np.median(calibrated[:20]) == pytest.approx(np.median(calibrated[20:]), abs=1e-4)


def test_training_scores_are_never_lowered() -> None:
    """Some methods reconstruct new images better; that must not lower the threshold."""
    detector, training = Stub(1.5), pixels(1, 20, KNOWN)
    calibrate(detector, training, pixels(0, 6, NEW))
    with torch.no_grad():
        own = detector.image_scores(detector.residuals(to_batch(training)), "raw")
    np.testing.assert_allclose(scores(detector)[SCORINGS.index("raw")][:20], own, rtol=1e-5)


def test_no_image_is_scored_by_moments_that_include_it() -> None:
    """Five held-out images in five folds: each is scored by the moments of the other four."""
    detector, held_out = Stub(0.0), pixels(0, 5, NEW)
    summary = calibrate(detector, pixels(1, 9, KNOWN), held_out)
    assert summary.kind != "own"
    residuals = detector.residuals(to_batch(held_out))
    expected = []
    for left_out in range(5):
        others = torch.arange(5) != left_out
        detector.calibration = Calibration.fit(summary.kind, residuals.select(others))
        expected.append(float(detector(to_batch(held_out[left_out : left_out + 1])).score))
    np.testing.assert_allclose(scores(detector)[SCORINGS.index("calibrated")], expected, rtol=1e-5)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_no_image_is_scored_by_moments_that_include_a_copy_of_it(gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training images are overfitted, copies are among held-out images; else, among all of them."""
    different = pixels(0, 5, NEW)
    order = np.array([0, 1, 2, 3, 4, 4, 3, 2, 1, 0])
    images, trained_on = different[order], 8 if gain else 0
    detector = Stub(gain)
    monkeypatch.setattr(detector, "training_scores_are_out_of_fold", lambda scoring: True)  # noqa: ARG005
    training = images[:trained_on] if trained_on else pixels(1, 9, KNOWN)
    summary = calibrate(detector, training, images[trained_on:])
    assert summary.kind != "own"
    residuals, expected = detector.residuals(to_batch(images)), []
    for number in range(5):
        detector.calibration = Calibration.fit(summary.kind, residuals.select(torch.from_numpy(order != number)))
        expected.append(float(detector(to_batch(different[number : number + 1])).score))
    calibrated = scores(detector)[SCORINGS.index("calibrated")]
    np.testing.assert_allclose(calibrated, np.array(expected)[order], rtol=1e-5)


def test_out_of_fold_residuals_of_fit_replace_those_of_training_images() -> None:
    """A detector that overfits its training images is calibrated on their out-of-fold residuals."""
    detector, other = Stub(0.0), Stub(0.0)
    training, held_out = pixels(1, 20, KNOWN), pixels(0, 6, NEW)
    out_of_fold_residuals = detector.residuals(to_batch(pixels(1, 20, NEW)))
    calibrate(detector, training, held_out, out_of_fold_residuals)
    calibrate(other, pixels(1, 20, NEW), held_out)
    for one, two in zip(scores(detector), scores(other), strict=True):
        assert len(one) == 26
        np.testing.assert_array_equal(one, two)


def test_a_self_calibrated_detector_gets_no_calibration() -> None:
    detector = SelfCalibrated(0.8)
    training, held_out = pixels(1, 20, KNOWN), pixels(0, 6, NEW)
    summary = calibrate(detector, training, held_out)
    assert (summary.kind, dict(summary.log_likelihood)) == ("own", {})
    assert detector.calibration is None
    raw, calibrated = (scores(detector)[SCORINGS.index(scoring)] for scoring in ("raw", "calibrated"))
    np.testing.assert_array_equal(raw, calibrated)
    images = to_batch(held_out)
    assert torch.equal(detector(images).score, detector.image_scores(detector.residuals(images), "raw"))


@pytest.mark.parametrize("gain", [0.0, 0.3, 0.8, 1.5])
@pytest.mark.parametrize(("known", "new"), [(1, 1), (2, 1), (5, 1), (1, 2), (12, 2)])
def test_one_or_two_images_are_enough(known: int, new: int, gain: float) -> None:
    detector = Stub(gain)
    calibrate(detector, pixels(1, known, KNOWN), pixels(0, new, NEW))
    for scoring, values in zip(SCORINGS, scores(detector), strict=True):
        assert len(values) >= 2
        assert (values > 0).all()
        assert 0 < detector.threshold(0.01, scoring) < math.inf


def test_images_without_any_residual_get_positive_scores() -> None:
    gray = np.full((4, SIZE, SIZE, 3), 128, np.uint8)
    detector = Stub(1.0)
    detector.gain = 0.0
    calibrate(detector, gray * np.uint8(0), gray * np.uint8(0))
    assert all((values > 0).all() for values in scores(detector))


def test_the_batch_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Stub(0.8), Stub(0.8)
    for detector, batch_size in ((one, 2), (other, 32)):
        monkeypatch.setattr("metalad.detectors.base.BATCH_SIZE", batch_size)
        calibrate(detector, pixels(1, 7, KNOWN), pixels(0, 3, NEW))
    for first, second in zip(scores(one), scores(other), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5)


def test_of_many_images_a_subset_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_fold, "MAX_IMAGES", 8)
    detector = Stub(0.8)
    calibrate(detector, pixels(1, 50, KNOWN), pixels(0, 20, NEW))
    assert [len(values) for values in scores(detector)] == [16, 16]


@pytest.mark.parametrize(("known", "new"), [(10, 1), (27, 3), (90, 10)])
def test_good_images_exceed_the_threshold_at_most_at_the_wanted_rate(known: int, new: int) -> None:
    """The mean over many training sets, whose images have a third of the scores of new ones."""
    rng = np.random.default_rng(new)
    is_new = np.arange(known + new) >= known
    level = np.where(is_new, 0.0, -math.log(3))
    thresholds = [
        threshold(_raised_to_held_out_level(np.exp(level + rng.standard_normal(known + new)), is_new).numpy(), 0.05)
        for _ in range(1000)
    ]
    false_alarms = stats.lognorm(1).sf(thresholds)
    error = false_alarms.std() / math.sqrt(len(false_alarms))
    # Few images give the level, all give the deviation: without widening, there would be too many alarms.
    assert 0.5 * 0.05 < false_alarms.mean() < 2 * 0.05 - 4 * error


# Methods with a closed form


def variation_model() -> VariationModel:
    return VariationModel(VariationModelConfig(image_size=(SIZE, SIZE), smoothing_sigma=1.0))


def test_a_fitted_method_scores_each_image_by_a_model_of_the_others() -> None:
    """With six images, each is a fold of its own; the final model is fitted on all."""
    detector, images = variation_model(), pixels(0, 6, NEW)
    detector.fit(images, 0)
    calibrate(detector, images, images[:0])  # of six images the level is not corrected
    expected = []
    for left_out in range(6):
        other = variation_model()
        other.fit(images[np.arange(6) != left_out], 0)
        batch = to_batch(images[left_out : left_out + 1])
        expected.append(float(other.image_scores(other.residuals(batch), "raw")))
    np.testing.assert_allclose(scores(detector)[SCORINGS.index("raw")], expected, rtol=1e-5)
    together = variation_model()
    together.fit(images, 0)
    assert torch.equal(detector.normal, together.normal)


def test_copies_of_one_image_beside_others_are_calibrated() -> None:
    detector, images = variation_model(), pixels(0, 3, NEW)
    copies = np.repeat(images[:1], 9, 0)
    detector.fit(copies, 0)
    calibrate(detector, copies, images[1:])
    assert all(np.isfinite(values).all() and (values > 0).all() for values in scores(detector))


def test_out_of_fold_fits_use_the_seed_of_the_final_fit() -> None:
    detector = Padim(PadimConfig(image_size=(64, 64), channels=4, grid="s8"))
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    detector.fit(images, 7)
    other = Padim(PadimConfig(image_size=(64, 64), channels=4, grid="s8"))
    other.fit(images[:2], 7)
    assert torch.equal(detector.kept, other.kept)
    torch.testing.assert_close(
        detector.out_of_fold_residuals(images, 7).values[2], other.residuals_of(images[2:]).values[0]
    )


def test_a_fitted_method_is_calibrated_to_about_1_on_new_images() -> None:
    """The moments are those of training residuals, scaled to the out-of-fold ones."""
    detector, images = variation_model(), pixels(0, 40, NEW)
    detector.fit(images[:20], 0)
    calibrate(detector, images[:20], images[:0])
    assert detector.calibration is not None
    maps = detector.calibration(detector.residuals(to_batch(images[20:])))
    assert 0.5 < float(maps.mean()) < 2


@pytest.mark.parametrize("images", [10, 28, 60])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0])
def test_the_level_is_that_of_a_model_of_all_images(images: int, exponent: float) -> None:
    """Scores that fall as exp(exponent / m) with the number m of images that a model is fitted on."""
    folds = number_of_folds(images)
    base = np.random.default_rng(0).lognormal(0, 0.5, images)
    by_halves, by_folds, by_all = (
        base * math.exp(exponent / fitted_on) for fitted_on in (images / 2, images * (folds - 1) / folds, images)
    )
    np.testing.assert_allclose(by_folds * level_of_all(by_halves, by_folds), by_all, rtol=1e-9)
    assert level_of_all(by_folds / 2, by_folds) == 1  # never raised


def test_scores_of_few_images_have_the_level_of_new_images() -> None:
    """PaDiM of 20 images and 40 channels: out-of-fold scores are too high, because fewer images were fitted on."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 48, 48, 3), np.uint8)
    config = PadimConfig(image_size=(48, 48), channels=40, grid="s8", smoothing_sigma=1.0)
    detector = Padim(config)
    detector.fit(images[:20], 0)
    calibrate(detector, images[:20], images[:0])
    with torch.no_grad():
        new = np.median(detector.image_scores(detector.residuals_of(images[20:]), "raw").numpy())
        refitted = np.median(detector.image_scores(detector.out_of_fold_residuals(images[:20]), "raw").numpy())
    level = np.median(scores(detector)[SCORINGS.index("raw")])
    assert refitted > 1.01 * new
    assert abs(math.log(level / new)) < abs(math.log(refitted / new))


def test_too_few_images_for_a_fit_and_a_score_are_refused() -> None:
    detector, images = variation_model(), pixels(0, 2, NEW)
    detector.fit(images, 0)
    with pytest.raises(DataError, match=r"variation_model needs at least 3 good images, 2 to fit .* got 2"):
        detector.out_of_fold_residuals(images)
