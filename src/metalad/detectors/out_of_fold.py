"""Calibrate a trained detector, and compute out-of-fold scores of good images for its threshold."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from metalad.data.folds import number_of_folds
from metalad.detectors.base import SCORINGS, Detector, FittedDetector, Scoring
from metalad.detectors.calibration import Calibration, CalibrationSummary, choose, scaled_to
from metalad.detectors.residuals import Residuals
from metalad.inference.threshold import MEDIAN_VARIANCE, MIN_IMAGES
from metalad.nn.pixels import Pixels, subsampled

MAX_IMAGES = 512
"""Residuals are held in memory at once: of at most this many training images and as many held-out ones."""
CALIBRATION_FOLDS = 5
"""Parts of the residuals, of which each is scored by a calibration that is fitted on the others."""
MIN_IMAGES_FOR_LEVEL = 8
"""With fewer images, half of them are too few to fit on, and the medians that are compared are too uncertain."""
OVERFIT_FRACTION = 0.5
"""A method overfits if the energy of its training residuals is less than this fraction of the held-out ones'; then only
the held-out images tell what new good images are like."""


def calibrate(
    detector: Detector, training: Pixels, held_out: Pixels, out_of_fold: Residuals | None = None, seed: int = 0
) -> CalibrationSummary:
    """Select and fit the calibration, and store the scores that new good images would get.

    The scores are cross-validated: each fifth of the images is scored by moments of the other four. A training image
    is reconstructed better than a new one; the scores of training images are therefore raised, on a logarithmic scale,
    until their median is that of the held-out images. The threshold uses both. If the method overfits its training
    images, the held-out images are used alone, if there are two or more.

    The scores of a method with a closed form are out-of-fold instead, and corrected by `level_of_all`.

    Args:
        detector: trained; it is left on the CPU, calibrated.
        training: good images that the detector was trained on.
        held_out: good images that it was not trained on (the validation images); none are needed for a method with a
            closed form, whose training images are all scored out-of-fold.
        out_of_fold: the training images' out-of-fold residuals, if fitting returned them.
        seed: with which the detector was fitted.
    """
    detector.eval()
    old = out_of_fold or detector.out_of_fold_residuals(subsampled(training, MAX_IMAGES), seed)
    new = detector.residuals_of(subsampled(held_out, MAX_IMAGES)) if len(held_out) else old.select(torch.arange(0))
    half = None
    if out_of_fold is None and isinstance(detector, FittedDetector) and len(training) >= MIN_IMAGES_FOR_LEVEL:
        half = detector.half_fitted_residuals(subsampled(training, MAX_IMAGES), seed)
    summary, fitted_on, residuals, trained_on = _select(detector, training, old, new)
    is_new = torch.arange(len(residuals.values)) >= trained_on
    detector.cpu()  # the residuals are there
    for scoring in SCORINGS:
        scores = _cross_validated_scores(detector, summary, fitted_on, residuals, scoring)
        raised = _raised_to_held_out_level(scores, is_new.numpy() | detector.training_scores_are_out_of_fold(scoring))
        if half is not None:
            by_halves = _cross_validated_scores(detector, summary, fitted_on.select(~is_new), half, scoring)
            raised[~is_new] *= level_of_all(by_halves, scores[~is_new])
        detector.register_buffer(f"normal_scores_{scoring}", raised)
    detector.calibration = None if summary.kind == "own" else Calibration.fit(summary.kind, fitted_on)
    return summary


def level_of_all(by_halves: Float[np.ndarray, " images"], by_folds: Float[np.ndarray, " images"]) -> float:
    """Return the level of scores by a model of all n images, relative to the level of the out-of-fold scores.

    The logarithm of the median score is taken as linear in 1 / (number of images that the model is fitted on), and
    extrapolated from n / 2 and n (k − 1) / k images, for k folds, to n. It is never raised. A score that falls by a
    power of the number, or by its logarithm, falls by more; then the level is still too high.
    """
    folds = number_of_folds(len(by_folds))
    smallest = np.finfo(np.float32).tiny
    medians = (float(np.median(np.log(np.maximum(scores, smallest)))) for scores in (by_halves, by_folds))
    difference = next(medians) - next(medians)
    return math.exp(-max(difference, 0.0) / (folds - 2))


def _select(
    detector: Detector, training: Pixels, old: Residuals, new: Residuals
) -> tuple[CalibrationSummary, Residuals, Residuals, int]:
    """Return the calibration's summary, the residuals to fit it on, and those to score, in the same order of images.

    The last value is how many of these are of training images.
    """
    both = Residuals.concatenate((old, new))
    if detector.self_calibrated:
        return CalibrationSummary("own", {}), both, both, len(old.values)
    if isinstance(detector, FittedDetector):
        # Residuals of unusual images are far larger out-of-fold: they would dominate the moments at their positions.
        in_sample = scaled_to(detector.residuals_of(subsampled(training, len(old.values))), old)
        fitted_on = Residuals.concatenate((in_sample._replace(distances=old.distances), new))
        return choose(in_sample, old), fitted_on, both, len(old.values)
    if len(new.values) >= MIN_IMAGES and _overfits(old, new):
        index = torch.arange(len(new.values))
        return choose(new.select(index % 2 == 0), new.select(index % 2 == 1)), new, new, 0
    return choose(old, new), both, both, len(old.values)


def _overfits(old: Residuals, new: Residuals) -> bool:
    return _energy(old) < OVERFIT_FRACTION * _energy(new)


def _energy(residuals: Residuals) -> float:
    return float(residuals.values.double().square().mean())


def _cross_validated_scores(
    detector: Detector, summary: CalibrationSummary, fitted_on: Residuals, residuals: Residuals, scoring: Scoring
) -> Float[np.ndarray, " images"]:
    scores = np.zeros(len(residuals.values))
    for fold in _folds(len(scores)):
        if scoring == "calibrated" and summary.kind != "own":
            detector.calibration = Calibration.fit(summary.kind, fitted_on.select(~fold))
        with torch.no_grad():
            scores[fold.numpy()] = detector.image_scores(residuals.select(fold), scoring).numpy()
    return scores


def _folds(count: int) -> Iterator[Tensor]:
    index = torch.arange(count)
    folds = min(CALIBRATION_FOLDS, count)
    for fold in range(folds):
        yield index % folds == fold


def _raised_to_held_out_level(scores: Float[np.ndarray, " images"], is_new: np.ndarray) -> Float[Tensor, " images"]:
    """Return the scores, those of training images raised to the level of the new ones'.

    Then only the m new images determine the level, and the prediction interval of the threshold, which assumes that all
    n do, would be too narrow: the deviations from the median are widened accordingly.
    """
    logs = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    new, count = int(is_new.sum()), len(logs)
    lift = np.median(logs[is_new]) - np.median(logs[~is_new]) if new < count else 0.0
    if lift > 0 and count > 2:  # after raising, two scores would not determine a deviation
        logs[~is_new] += lift
        uncertainty, assumed = 1 + MEDIAN_VARIANCE / new, 1 + MEDIAN_VARIANCE / count
        median = np.median(logs)
        logs = median + math.sqrt((count - 1) / (count - 2) * uncertainty / assumed) * (logs - median)
    return torch.from_numpy(np.exp(logs)).float()
