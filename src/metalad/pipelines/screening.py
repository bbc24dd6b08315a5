"""Screen the training images after training: name those that stand out, and refuse a threshold that is useless."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from metalad.data import Images, Sample
from metalad.data.images import read_image, resize_image
from metalad.data.likeness import listed
from metalad.data.reading import Reading
from metalad.data.text import number_of
from metalad.data.walking import OUTLIERS
from metalad.detectors.base import Detector
from metalad.detectors.out_of_fold import MAX_IMAGES
from metalad.detectors.outliers import standing_out, useless_threshold
from metalad.inference.stream import Predictor, infer_one
from metalad.nn.pixels import Pixels, subsampled_indices
from metalad.pipelines.rendering import render
from metalad.runtime.errors import DataError, ImageError
from metalad.storage.model_file import StoredModel
from metalad.visualization.overlay import save_picture
from metalad.visualization.sheet import concatenate_horizontally

FOLDER = OUTLIERS
MAX_PICTURES = 10
PICTURE_SIDE = 800
"""Longest side of the image and of the overlay in a picture, in pixels."""


@dataclass(frozen=True)
class Outlier:
    """A training image that stands out: its index, training images first, its score, and its multiple of the median."""

    index: int
    score: float
    ratio: float


def screen(model: StoredModel, training: Pixels, validation: Pixels, names: Sequence[str]) -> tuple[Outlier, ...]:
    """Return the images that stand out among the good ones, the highest multiple of the median score first.

    Images with out-of-fold scores are compared with each other, and so are the others, at most `MAX_IMAGES`, by the
    scores of the finished model.

    Args:
        model: calibrated.
        training, validation: pixels of the good images.
        names: of the training images, and then of the validation images, for the error message.

    Raises:
        DataError: the threshold is useless; the text names the images with the highest scores.
    """
    detector, scoring = model.detector, model.scoring(None)
    indices, scores = _out_of_fold_scores(detector, len(training), len(validation))
    threshold = model.header.thresholds[scoring]
    if reason := useless_threshold(threshold, scores):
        highest = [names[index] for index in indices[np.argsort(-scores, kind="stable")][:3]]
        raise DataError(
            f"{reason}: no defect could be found. Look at the images that score highest: {listed(highest)}; "
            "remove defective and damaged ones, or give more images of good parts"
        )
    groups = [(indices, scores)]
    if not np.isin(np.arange(len(training)), indices).any():
        chosen = subsampled_indices(len(training), MAX_IMAGES)
        with torch.no_grad():
            groups.append((chosen, detector.image_scores(detector.residuals_of(training[chosen]), scoring).numpy()))
    found = [
        Outlier(int(group[index]), float(values[index]), float(values[index] / np.median(values)))
        for group, values in groups
        for index in standing_out(values)
    ]
    return tuple(sorted(found, key=lambda outlier: -outlier.ratio))


def screening_lines(outliers: Sequence[Outlier], names: Sequence[str], folder: Path | None) -> tuple[str, ...]:
    """Describe the images that stand out: a summary, and a line for each, at most `MAX_PICTURES`.

    names: as of `screen`. folder: with their pictures, if there are any.
    """
    if not outliers:
        return ()
    where = f" (pictures in {folder})" if folder else ""
    verb = "stands" if len(outliers) == 1 else "stand"
    lines = [
        f"{number_of(len(outliers), 'training image')} {verb} out{where}; remove those with defects, and train again"
    ]
    lines += [
        f"  {names[outlier.index]}: score {outlier.score:.4g}, {outlier.ratio:.1f} times the median"
        for outlier in outliers[:MAX_PICTURES]
    ]
    if len(outliers) > MAX_PICTURES:
        lines.append(f"  and {len(outliers) - MAX_PICTURES} more")
    return tuple(lines)


def write_pictures(
    folder: Path, model: StoredModel, outliers: Sequence[Outlier], samples: Sequence[Sample], reading: Reading
) -> None:
    """Write a picture of each image that stands out: the image, and its anomaly map beside it.

    Raises:
        RunError: a picture cannot be written.
    """
    predictor = Predictor(model.engine, (model.scoring(None),), 1)
    for rank, outlier in enumerate(outliers[:MAX_PICTURES], 1):
        sample = samples[outlier.index]
        try:
            inferred = infer_one(predictor, sample, partial(read_image, sample.path, reading))
            rendering = render(inferred, None, model.scoring(None))
        except ImageError:  # it was read once, but is gone; it is named all the same
            continue
        height, width = rendering.image.shape[:2]
        scale = min(1.0, PICTURE_SIDE / max(height, width))
        size = (max(1, round(scale * height)), max(1, round(scale * width)))
        pictures = [rendering.image, rendering.overlay(model.threshold())]
        sheet = concatenate_horizontally([resize_image(picture, size) for picture in pictures])
        save_picture(folder / f"{rank:02}-{sample.path.stem[:200]}.jpg", sheet)


def names_of(training: Images, validation: Images) -> list[str]:
    """Return the paths of the images, in the order of `screen`."""
    return [str(sample.path) for sample in (*training.samples, *validation.samples)]


def _out_of_fold_scores(
    detector: Detector, training: int, validation: int
) -> tuple[np.ndarray, Float[np.ndarray, " images"]]:
    """Return the indices of the images that the threshold is computed from, training images first, and their scores.

    A method that overfits has no scores of training images. One with a closed form may have fewer than `MAX_IMAGES`.
    """
    scores = detector.get_buffer(f"normal_scores_{detector.config.scoring}").numpy(force=True).astype(np.float64)
    new = training + subsampled_indices(validation, MAX_IMAGES)
    scored_training = len(scores) - len(new)
    assert 0 <= scored_training <= training, f"{len(scores)} scores of {training} + {validation} images"
    return np.concatenate([subsampled_indices(training, scored_training), new]), scores
