"""The base classes of all methods: modules that turn images into scores and anomaly maps.

A method computes `residuals` and how its paper turns them into a map (`raw_map`). Calibration, smoothing, the image
score and the threshold are shared. A method trained by gradient descent derives from `GradientDetector`, one with a
closed form from `FittedDetector`. `docs/architecture.md` shows which method is called when.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from metalad.data.folds import fold_of_each
from metalad.data.framing import Framing
from metalad.detectors.calibration import Calibration
from metalad.detectors.residuals import Residuals
from metalad.inference.threshold import threshold
from metalad.nn.fitted import unfitted
from metalad.nn.pixels import Pixels, to_batch
from metalad.nn.smoothing import GuidedSmoothing, Smoothing
from metalad.runtime.choices import Protocol as Protocol
from metalad.runtime.choices import Scoring as Scoring
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import check_choices, setting
from metalad.training.loop import Learner, Training

SCORINGS: tuple[Scoring, ...] = ("calibrated", "raw")

BATCH_SIZE = 32
TOP_FRACTION = 0.01
"""Fraction of a map's pixels whose mean is the image score "top-k"."""


class Prediction(NamedTuple):
    """The output of a detector for a batch.

    score: one number an image; higher = more anomalous.
    anomaly_map: one number a pixel at the model's resolution; higher = more anomalous, never negative.
    """

    score: Float[Tensor, " batch"]
    anomaly_map: Float[Tensor, "batch height width"]


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Settings that every method has; a method's own config derives from this class.

    Raises:
        ConfigError: an impossible value.
    """

    image_size: tuple[int, int] = setting((128, 128), "height and width that images are resized to, in pixels")
    image_scale: float = setting(
        0.0,
        "0: images are resized to image_size, whatever their shape; else by this factor, and reflected beyond it",
    )
    smoothing_sigma: float = setting(4.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    guide: Literal["image", "none"] = setting(
        "none", "image: the calibrated map follows the edges of the image (guided filter); none: as in the papers"
    )
    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "max", "image score: the map's maximum, its mean, the mean of its highest 1 %, or the method's own"
    )
    scoring: Scoring = setting("calibrated", "calibrated: map in units of good images; raw: map as in the paper")

    @property
    def framing(self) -> Framing:
        """How images of any size become images of `image_size`."""
        return Framing(self.image_size, self.image_scale)

    @property
    def residual_size(self) -> tuple[int, int]:
        """Height and width of the residuals; maps of another size than the images' are resized to theirs."""
        return self.image_size

    def __post_init__(self) -> None:
        check_choices(self)
        if min(self.image_size) < 16:
            raise ConfigError(f"image_size is {self.image_size}; height and width must be at least 16 pixels")
        if not 0 <= self.image_scale < float("inf"):  # NaN, too
            raise ConfigError(f"image_scale is {self.image_scale}; it must be 0 or above")
        if not 0 <= 4 * self.smoothing_sigma < min(self.image_size):  # NaN, too
            raise ConfigError(
                f"smoothing_sigma is {self.smoothing_sigma}; it must lie between 0 and a quarter of image_size"
            )


class Detector(nn.Module, ABC):
    """A method: its fitted tensors, its frozen config, its calibration, and the scores that give its threshold.

    Buffers that are fitted to data are None until then (see `metalad.nn.fitted`).

    normal_scores_calibrated, normal_scores_raw: image scores of good images that took no part in what they are scored
        by; the threshold for any false-alarm rate follows from them (`threshold`).
    """

    name: ClassVar[str]
    scored_smoothed: ClassVar[bool] = True
    """Whether the image score comes from the map after smoothing, as in most papers, or before."""
    has_own_score: ClassVar[bool] = False
    """Whether the residuals come with an image score, which `image_score="own"` selects."""
    min_images: ClassVar[int] = 1
    """The fewest images that the method can be trained or fitted on; see `required_images`."""
    self_calibrated: ClassVar[bool] = False
    """Whether the raw map is in units of good images already; then there is no `calibration`."""
    not_exportable: ClassVar[str] = ""
    """Why the method cannot be exported to a graph that other runtimes execute; empty if it can."""
    config: DetectorConfig

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if config.image_score == "own" and not self.has_own_score:
            raise ConfigError(f"{self.name} has no image score of its own; set image_score to max, mean or top-k")
        self.config = config
        self.calibration: Calibration | None = None
        self.smoothing = Smoothing(*config.image_size, config.smoothing_sigma)
        guided = config.guide == "image" and config.smoothing_sigma > 0
        self.guided_smoothing = GuidedSmoothing(*config.image_size, config.smoothing_sigma) if guided else None
        for scoring in SCORINGS:
            self.register_buffer(f"normal_scores_{scoring}", None)

    @classmethod
    def required_images(cls) -> int:
        """Return the fewest good images in all: one more than `min_images`, for validation or an out-of-fold score."""
        return cls.min_images + 1

    @property
    def further_hashes(self) -> tuple[str, ...]:
        """Hashes (see `metalad.data.likeness.pixel_hash`) of learnt images other than the training images."""
        return ()

    @property
    def distance_weights(self) -> Mapping[str, float]:
        """The weights of the distances that the map combines, by name, for the log; empty if there are none."""
        return {}

    @property
    def device(self) -> torch.device:
        """The device of the detector's tensors."""
        return self.smoothing.rows.device

    @abstractmethod
    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the residuals of RGB images in [0, 1] of the config's size."""

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the method's own map before smoothing; by default the squared residual summed over channels."""
        return residuals.values.square().sum(1)

    def require_fitted(self) -> None:
        """Check that all buffers are fitted, apart from the scores that `calibrate` stores.

        Raises:
            RuntimeError: the detector was not fitted.
        """
        if missing := [name for name in unfitted(self) if not name.startswith("normal_scores")]:
            raise RuntimeError(f"{self.name} is not fitted: {', '.join(missing[:3])}")

    # Residuals of the images that calibration and threshold are fitted on

    def residuals_of(self, pixels: Pixels) -> Residuals:
        """Return the residuals of any number of images, on the CPU.

        Raises:
            RuntimeError: the detector was not fitted.
        """
        self.require_fitted()
        with torch.no_grad():
            parts = [  # each moved to the CPU at once: a GPU has less memory
                Residuals.concatenate([self.residuals(to_batch(pixels[start : start + BATCH_SIZE], self.device))])
                for start in counted(range(0, len(pixels), BATCH_SIZE), "residuals", "batch")
            ]
        return Residuals.concatenate(parts)

    def out_of_fold_residuals(self, training: Pixels, seed: int = 0) -> Residuals:  # noqa: ARG002 (for methods to override)
        """Return residuals of the training images, as far as possible from parts that were fitted without them.

        The default returns the plain residuals, for methods that hardly overfit their training images.

        seed: of the random choices in fitting.
        """
        return self.residuals_of(training)

    def training_scores_are_out_of_fold(self, scoring: Scoring) -> bool:  # noqa: ARG002 (for methods to override)
        """Return whether scores of `out_of_fold_residuals` need no correction towards those of new images."""
        return False

    def _residuals_by_folds(
        self,
        training: Pixels,
        residuals_without: Callable[[Bool[np.ndarray, " images"]], Residuals],
        folds: int | None = None,
    ) -> Residuals:
        """Return the residuals of all images in their order, computed fold by fold; see `fold_of_each`.

        residuals_without: is called with a mask of images, fits on all others, and returns the residuals of those.
        """
        if len(training) == 1:
            return self.residuals_of(training)  # there are no others to fit on
        fold = fold_of_each(training, folds)
        parts = [
            residuals_without(fold == left_out) for left_out in counted(range(fold.max() + 1), "out-of-fold", "fold")
        ]
        order = np.argsort(np.argsort(fold, kind="stable"), kind="stable")
        return Residuals.concatenate(parts).select(torch.from_numpy(order))

    # Scores and maps

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Prediction:
        """Return the score and the anomaly map of RGB images in [0, 1] of the config's size.

        Raises:
            RuntimeError: the detector is not fitted and calibrated.
        """
        self.require_fitted()
        return self.predict(images, self.residuals(images), self.config.scoring)

    def predict(
        self, images: Float[Tensor, "batch 3 height width"], residuals: Residuals, scoring: Scoring
    ) -> Prediction:
        """Return the scores and the smoothed maps by one scoring.

        With `guide="image"` the calibrated map follows the edges of the images. The score is that of the map without
        guide and without `Residuals.localization`, and no pixel exceeds that map's maximum: an image that passes has no
        pixel above the threshold.

        Raises:
            RuntimeError: the scoring is "calibrated", and the detector is not.
        """
        scored = self._unsmoothed(residuals, scoring)
        smoothed = self.smoothing(scored)
        score = self._image_score(residuals, scored, smoothed, scoring)
        maps, localized = scored, smoothed
        if residuals.localization is not None:
            maps = residuals.localization
            localized = torch.minimum(self.smoothing(maps), _maximum(smoothed))
        if self.guided_smoothing is None or scoring == "raw":
            return Prediction(score, localized)
        guided = self.guided_smoothing(maps, images).clamp_min(0)
        return Prediction(score, torch.minimum(guided, _maximum(localized)))

    def image_scores(self, residuals: Residuals, scoring: Scoring) -> Float[Tensor, " batch"]:
        """Return the image scores alone; raises as `predict`."""
        maps = self._unsmoothed(residuals, scoring)
        return self._image_score(residuals, maps, self.smoothing(maps), scoring)

    def threshold(self, false_alarms: float, scoring: Scoring) -> float:
        """Return the image score that good images exceed with probability `false_alarms`."""
        return threshold(self.get_buffer(f"normal_scores_{scoring}").numpy(force=True), false_alarms)

    def _unsmoothed(self, residuals: Residuals, scoring: Scoring) -> Float[Tensor, "batch height width"]:
        if scoring == "raw" or self.self_calibrated:
            maps = self.raw_map(residuals)
        elif self.calibration is None:
            raise RuntimeError(f"{self.name} is not calibrated; see metalad.detectors.out_of_fold.calibrate")
        else:
            maps = self.calibration(residuals)
        if maps.shape[-2:] == self.config.image_size:
            return maps
        # The method works on a smaller image.
        return F.interpolate(maps[:, None], self.config.image_size, mode="bilinear")[:, 0]

    def _image_score(
        self,
        residuals: Residuals,
        maps: Float[Tensor, "batch height width"],
        smoothed: Float[Tensor, "batch height width"],
        scoring: Scoring,  # noqa: ARG002 (for methods to override)
    ) -> Float[Tensor, " batch"]:
        if self.config.image_score == "own" and residuals.score is not None:
            return residuals.score
        pixels = (smoothed if self.scored_smoothed else maps).flatten(1)
        if self.config.image_score == "max":
            return pixels.amax(1)
        if self.config.image_score == "mean":
            return pixels.mean(1)
        return pixels.topk(max(1, round(TOP_FRACTION * pixels.shape[1])), 1).values.mean(1)


class GradientDetector(Detector, Learner):
    """A method trained by gradient descent on a loss, in one stage or in several (see `Learner`)."""

    @abstractmethod
    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the training plan of each stage: the paper's, or the default, which is as good in less time."""

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Fit what must be fitted after the last stage, such as scales that only held-out good images can give."""


class FittedDetector(Detector):
    """A method with a closed form: statistics of good images, no loss."""

    @abstractmethod
    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> Residuals | None:
        """Fit on good images of the config's size.

        Returns:
            The out-of-fold residuals of at most `metalad.detectors.out_of_fold.MAX_IMAGES` images, those that
            `subsampled` selects, where fitting yields them in less time than `out_of_fold_residuals` needs; else None.
        """

    def out_of_fold_residuals(self, training: Pixels, seed: int = 0) -> Residuals:
        """Return the residuals of each fold of the images by a model that is fitted on the other folds.

        The cost is that of fitting once for each fold, on 80 to 90 % of the images: 5 times with 40 images or more, up
        to 10 times with fewer, once for each image with fewer than 10.

        Raises:
            DataError: fewer images than one fold and a fit need.
        """
        if len(training) <= self.min_images:
            raise DataError(
                f"{self.name} needs at least {self.min_images + 1} good images, {self.min_images} to fit and another "
                f"one to set the threshold, got {len(training)}"
            )

        return self._refitted(training, seed, None)

    def half_fitted_residuals(self, training: Pixels, seed: int = 0) -> Residuals:
        """Return the residuals of each half of the images by a model that is fitted on the other half.

        Compared with those of `out_of_fold_residuals`, they show how much residuals fall as images get more.
        """
        return self._refitted(training, seed, 2)

    def _refitted(self, training: Pixels, seed: int, folds: int | None) -> Residuals:
        def residuals_without(left_out: Bool[np.ndarray, " images"]) -> Residuals:
            detector = type(self)(self.config).to(self.device).eval()
            detector.fit(training[~left_out], seed)
            return detector.residuals_of(training[left_out])

        return self._residuals_by_folds(training, residuals_without, folds)

    def training_scores_are_out_of_fold(self, scoring: Scoring) -> bool:  # noqa: ARG002 (both are)
        """Return True: all parts of the method are fitted without the image."""
        return True


def _maximum(maps: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch 1 1"]:
    return maps.amax((1, 2), keepdim=True)
