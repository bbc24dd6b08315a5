"""Give a trained detector its units and its threshold, from good images alone."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from metalad.detectors.base import SCORINGS, Detector, Scoring
from metalad.detectors.calibration import Calibration, CalibrationSummary, choose
from metalad.detectors.residuals import Residuals
from metalad.detectors.threshold import MEDIAN_VARIANCE, MIN_IMAGES
from metalad.nn.pixels import Pixels, thinned

MAX_IMAGES = 512
"""Evidence is held in memory at once: at most of this many training and as many held-out images."""
FOLDS = 5
OVERFIT_FRACTION = 0.5
"""A method whose training residuals carry less than this part of the held-out ones' energy knows its training
images by heart; only the held-out images then say anything of good images to come."""


def calibrate(detector: Detector, training: Pixels, held_out: Pixels) -> CalibrationSummary:
    """Choose and learn the calibration, and store the scores that normal images would get.

    held_out: good images that the detector did not learn from (the validation images). The detector is left on
        the CPU.

    The scores are cross-validated: each fifth of the images is scored by moments that the others gave. A training
    image is rebuilt better than a new one; the training images' scores are therefore raised, on a logarithmic
    scale, until their median is that of the held-out images, and both are kept; unless the method
    `keeps_training_scores` as they come. Where it knows its training images by heart, the held-out images are used
    alone, if there are two or more.
    """
    detector.eval()
    unseen = detector.residuals_of(thinned(held_out, MAX_IMAGES))
    seen = detector.out_of_fold_residuals(thinned(training, MAX_IMAGES))
    if not detector.has_own_units and len(unseen.values) >= MIN_IMAGES and _overfits(seen, unseen):
        summary, known, trained_on = _choose_among(unseen), unseen, 0
    else:
        summary, known, trained_on = choose(seen, unseen), Residuals.joined((seen, unseen)), len(seen.values)
    fresh = np.arange(len(known.values)) >= trained_on
    detector.cpu()  # the evidence was brought there to be held at once
    for scoring in SCORINGS:
        scores = _held_out_scores(detector, summary, known, scoring)
        detector.register_buffer(
            f"normal_scores_{scoring}",
            _raised_to_held_out_level(scores, detector.keeps_training_scores(scoring) | fresh),
        )
    detector.calibration = Calibration.fit(summary.kind, known)
    return summary


def _overfits(seen: Residuals, unseen: Residuals) -> bool:
    """Say so of residuals that vanish on training images; a map in units of its own has a level that never does."""
    return _energy(seen) < OVERFIT_FRACTION * _energy(unseen)


def _energy(residuals: Residuals) -> float:
    return float(residuals.values.double().square().mean())


def _choose_among(residuals: Residuals) -> CalibrationSummary:
    index = torch.arange(len(residuals.values))
    return choose(residuals.taken(index % 2 == 0), residuals.taken(index % 2 == 1))


def _held_out_scores(
    detector: Detector, summary: CalibrationSummary, residuals: Residuals, scoring: Scoring
) -> Float[np.ndarray, " images"]:
    scores = np.zeros(len(residuals.values))
    for fold in _folds(len(scores)):
        if scoring == "calibrated":
            detector.calibration = Calibration.fit(summary.kind, residuals.taken(~fold))
        part = residuals.taken(fold)
        with torch.no_grad():
            scores[fold.numpy()] = detector.scores(part, scoring).numpy()
    return scores


def _folds(count: int) -> Iterator[Tensor]:
    index = torch.arange(count)
    folds = min(FOLDS, count)
    for fold in range(folds):
        yield index % folds == fold


def _raised_to_held_out_level(scores: Float[np.ndarray, " images"], fresh: np.ndarray) -> Float[Tensor, " images"]:
    """Return the scores, those of training images raised to the level of the fresh ones'.

    Only the fresh ones then say where the level is, and the threshold's prediction interval, which takes all n to
    say so, would be too narrow: the spread is widened by what m fresh ones leave unknown.
    """
    logs = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    known, count = int(fresh.sum()), len(logs)
    lift = np.median(logs[fresh]) - np.median(logs[~fresh]) if known < count else 0.0
    if lift > 0 and count > 2:  # of two, raised, nothing would be left to tell a spread by
        logs[~fresh] += lift
        unknown, least = 1 + MEDIAN_VARIANCE / known, 1 + MEDIAN_VARIANCE / count
        middle = np.median(logs)
        logs = middle + math.sqrt((count - 1) / (count - 2) * unknown / least) * (logs - middle)
    return torch.from_numpy(np.exp(logs)).float()
