"""Calibrate a trained detector, and compute out-of-fold scores of good images for its threshold."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metalad.data.folds import divided, number_of_each, number_of_folds
from metalad.detectors.base import SCORINGS, Detector, FittedDetector, Scoring
from metalad.detectors.calibration import Calibration, CalibrationSummary, choose, scaled_to
from metalad.detectors.residuals import Residuals
from metalad.inference.threshold import MEDIAN_VARIANCE, MIN_IMAGES
from metalad.nn.pixels import Pixels, subsampled

MAX_IMAGES = 512
"""Residuals are held in memory at once: of at most this many training images and as many held-out ones."""
CALIBRATION_FOLDS = 5
"""Parts of the residuals, of which each is scored by a calibration that is fitted on the others; identical images are
in the same part."""
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
    chosen = _select(detector, training, held_out, old, new)
    is_new = torch.arange(len(chosen.scored.values)) >= chosen.trained_on
    detector.cpu()  # the residuals are there
    for scoring in SCORINGS:
        scores = _cross_validated_scores(detector, chosen, scoring)
        raised = _raised_to_held_out_level(scores, is_new.numpy() | detector.training_scores_are_out_of_fold(scoring))
        if half is not None:
            by_halves = _cross_validated_scores(detector, chosen.of_training(half), scoring)
            raised[~is_new] *= level_of_all(by_halves, scores[~is_new])
        detector.register_buffer(f"normal_scores_{scoring}", raised)
    summary = chosen.summary
    detector.calibration = None if summary.kind == "own" else Calibration.fit(summary.kind, chosen.fitted_on)
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


@dataclass(frozen=True)
class _Selection:
    """The residuals that calibrate a detector, of the same images in the same order; those of training images first.

    fitted_on: those that moments are estimated from. scored: those whose scores give the threshold. numbers: of the
    images; identical ones have the same. trained_on: how many of the images are training images.
    """

    summary: CalibrationSummary
    fitted_on: Residuals
    scored: Residuals
    numbers: Int[np.ndarray, " images"]
    trained_on: int

    def of_training(self, scored: Residuals) -> "_Selection":
        """Return the selection of the training images alone, with other residuals to score."""
        fitted_on = self.fitted_on.select(torch.arange(len(self.numbers)) < self.trained_on)
        return _Selection(self.summary, fitted_on, scored, self.numbers[: self.trained_on], self.trained_on)


def _select(detector: Detector, training: Pixels, held_out: Pixels, old: Residuals, new: Residuals) -> _Selection:
    """Select the calibration's kind and residuals, given those of training images and of held-out ones."""
    both, trained_on = Residuals.concatenate((old, new)), len(old.values)
    if detector.self_calibrated:  # nothing is fitted, so that copies of an image need not be found
        return _Selection(CalibrationSummary("own", {}), both, both, np.arange(len(both.values)), trained_on)
    images = subsampled(training, trained_on), subsampled(held_out, len(new.values))
    numbers = number_of_each(itertools.chain(*images))
    if isinstance(detector, FittedDetector):
        # Residuals of unusual images are far larger out-of-fold: they would dominate the moments at their positions.
        in_sample = scaled_to(detector.residuals_of(images[0]), old)
        fitted_on = Residuals.concatenate((in_sample._replace(distances=old.distances), new))
        return _Selection(choose(in_sample, old), fitted_on, both, numbers, trained_on)
    if len(new.values) >= MIN_IMAGES and _overfits(old, new):
        numbers = number_of_each(images[1])
        half = torch.from_numpy(divided(numbers, 2) == 0)
        return _Selection(choose(new.select(half), new.select(~half)), new, new, numbers, 0)
    return _Selection(choose(old, new), both, both, numbers, trained_on)


def _overfits(old: Residuals, new: Residuals) -> bool:
    return _energy(old) < OVERFIT_FRACTION * _energy(new)


def _energy(residuals: Residuals) -> float:
    return float(residuals.values.double().square().mean())


def _cross_validated_scores(
    detector: Detector, selection: _Selection, scoring: Scoring
) -> Float[np.ndarray, " images"]:
    scores = np.zeros(len(selection.numbers))
    for fold in _folds(selection.numbers):
        if scoring == "calibrated" and selection.summary.kind != "own":
            detector.calibration = Calibration.fit(selection.summary.kind, selection.fitted_on.select(~fold))
        with torch.no_grad():
            scores[fold.numpy()] = detector.image_scores(selection.scored.select(fold), scoring).numpy()
    return scores


def _folds(numbers: Int[np.ndarray, " images"]) -> Iterator[Bool[Tensor, " images"]]:
    fold_of_each = divided(numbers, CALIBRATION_FOLDS)
    for fold in np.unique(fold_of_each):
        yield torch.from_numpy(fold_of_each == fold)


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
