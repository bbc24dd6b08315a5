"""What every method is: a module that turns images into a `Prediction`, learnt from good images alone.

A method says what it holds against each pixel (`residuals`) and how its paper turns that into a map (`raw_map`).
Calibration, smoothing, the image score and the threshold are the same for all. A method that learns by gradient
descent derives from `GradientDetector`, one with a closed form from `FittedDetector`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from metalad.detectors.calibration import Calibration
from metalad.detectors.residuals import Residuals
from metalad.detectors.threshold import threshold
from metalad.nn.pixels import Pixels, to_batch
from metalad.nn.smoothing import GuidedSmoothing, Smoothing
from metalad.runtime.errors import ConfigError
from metalad.runtime.progress import counted
from metalad.runtime.settings import check_choices, setting
from metalad.training.loop import Learner, Training

Scoring = Literal["calibrated", "raw"]
SCORINGS: tuple[Scoring, ...] = ("calibrated", "raw")
Protocol = Literal["default", "paper"]

BATCH_SIZE = 32
FOLDS = 4
"""A part that learns images by heart is learnt without a fourth of them, to meet that fourth as if it were new."""
TOP_FRACTION = 0.01
"""The part of a map's pixels whose mean is the "top-k" image score."""


class Prediction(NamedTuple):
    """What a detector says of a batch.

    score: one number an image; higher = more abnormal.
    anomaly_map: one number a pixel at the model's resolution; higher = more abnormal, never negative.
    """

    score: Float[Tensor, " batch"]
    anomaly_map: Float[Tensor, "batch height width"]


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What is chosen for every method; a method's own config derives from this.

    Raises:
        ConfigError: a value that cannot be.
    """

    image_size: tuple[int, int] = setting((128, 128), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(4.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    guide: Literal["image", "none"] = setting(
        "none", "what the calibrated map's outlines follow: image, its edges (guided filter), or none (papers)"
    )
    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "max", "image score: the map's maximum, its mean, the mean of its highest 1 %, or the method's own"
    )
    scoring: Scoring = setting("calibrated", "map to judge by: calibrated on good images, or raw as the paper has it")

    @property
    def residual_size(self) -> tuple[int, int]:
        """Height and width of the evidence; maps of another size than the images' are brought to theirs."""
        return self.image_size

    def __post_init__(self) -> None:
        check_choices(self)
        if min(self.image_size) < 16:
            raise ConfigError(f"image_size is {self.image_size}; height and width must be at least 16 pixels")
        if not 0 <= 4 * self.smoothing_sigma < min(self.image_size):  # NaN, too
            raise ConfigError(
                f"smoothing_sigma is {self.smoothing_sigma}; it must lie between 0 and a quarter of image_size"
            )


class Detector(nn.Module, ABC):
    """A method: its learnt tensors, its frozen config, and once calibrated, its units and its threshold.

    normal_scores: image scores of held-out good images, one buffer a scoring; the threshold for any false-alarm
        rate follows from them (`threshold`).
    """

    name: ClassVar[str]
    scored_smoothed: ClassVar[bool] = True
    """Whether the image score is taken from the map after smoothing, as most papers do, or before."""
    has_own_score: ClassVar[bool] = False
    """Whether the evidence comes with an image score, which `image_score="own"` takes."""
    has_own_units: ClassVar[bool] = False
    """Whether the raw map is in units of good images already: calibrated once more it would lose."""
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
            self.register_buffer(f"normal_scores_{scoring}", torch.zeros(0))

    @property
    def device(self) -> torch.device:
        """Where the detector's tensors lie."""
        return self.smoothing.rows.device

    @abstractmethod
    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the residuals of RGB images in [0, 1] of the config's size."""

    def residuals_of(self, pixels: Pixels) -> Residuals:
        """Return the evidence of any number of images, on the CPU."""
        with torch.no_grad():
            parts = [  # each brought to the CPU at once: a GPU has less memory
                Residuals.joined([self.residuals(to_batch(pixels[start : start + BATCH_SIZE], self.device))])
                for start in counted(range(0, len(pixels), BATCH_SIZE), "residuals", "batch")
            ]
        return Residuals.joined(parts)

    def out_of_fold_residuals(self, training: Pixels) -> Residuals:
        """Return the evidence of training images as far as possible as if they were new.

        A part that learns its images by heart must be learnt anew without them (see `FOLDS`). By default that of any
        images, for methods that know their training images little better than others.
        """
        return self.residuals_of(training)

    def keeps_training_scores(self, scoring: Scoring) -> bool:  # noqa: ARG002 (for methods to say)
        """Return whether calibration keeps the scores of `out_of_fold_residuals`, or raises them to new images' median."""
        return False

    def _residuals_by_folds(
        self, training: Pixels, residuals_without: Callable[[Bool[np.ndarray, " images"]], Residuals]
    ) -> Residuals:
        """Return the evidence of all images in their order, a fold at a time.

        evidence_without: learns from the images other than those it is told, and returns the evidence of those.
        """
        if len(training) == 1:
            return self.residuals_of(training)  # there are no others
        fold = np.arange(len(training)) % min(FOLDS, len(training))
        parts = [residuals_without(fold == left_out) for left_out in counted(range(fold.max() + 1), "as new", "fold")]
        order = np.argsort(np.argsort(fold, kind="stable"), kind="stable")
        return Residuals.joined(parts).taken(torch.from_numpy(order))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the method's own map before smoothing; by default the squared residual summed over channels."""
        return residuals.values.square().sum(1)

    def judge(
        self, images: Float[Tensor, "batch 3 height width"], residuals: Residuals, scoring: Scoring
    ) -> Prediction:
        """Smooth the map of the wanted scoring, and reduce it to an image score (see `scored_smoothed`).

        With `guide="image"` the calibrated map then follows the edges of the images. The score is that of the map
        without them, whose maximum no pixel exceeds: in an image that passes nothing is outlined.
        """
        maps = self._unsmoothed(residuals, scoring)
        smoothed = self.smoothing(maps)
        score = self._image_score(residuals, maps, smoothed)
        if self.guided_smoothing is None or scoring == "raw":
            return Prediction(score, smoothed)
        guided = self.guided_smoothing(maps, images).clamp_min(0)
        return Prediction(score, torch.minimum(guided, smoothed.amax((1, 2), keepdim=True)))

    def scores(self, residuals: Residuals, scoring: Scoring) -> Float[Tensor, " batch"]:
        """Return the image scores alone."""
        maps = self._unsmoothed(residuals, scoring)
        return self._image_score(residuals, maps, self.smoothing(maps))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Prediction:
        """Return the score and the anomaly map of RGB images in [0, 1] of the config's size."""
        return self.judge(images, self.residuals(images), self.config.scoring)

    def threshold(self, false_alarms: float, scoring: Scoring) -> float:
        """Return the image score that good images exceed with probability `false_alarms`."""
        return threshold(self.get_buffer(f"normal_scores_{scoring}").numpy(force=True), false_alarms)

    def _unsmoothed(self, residuals: Residuals, scoring: Scoring) -> Float[Tensor, "batch height width"]:
        if scoring == "calibrated" and self.calibration is not None and not self.has_own_units:
            maps: Tensor = self.calibration(residuals)
        else:
            maps = self.raw_map(residuals)
        if maps.shape[-2:] == self.config.image_size:
            return maps
        # Of a method that works on a smaller image.
        return F.interpolate(maps[:, None], self.config.image_size, mode="bilinear")[:, 0]

    def _image_score(
        self,
        residuals: Residuals,
        maps: Float[Tensor, "batch height width"],
        smoothed: Float[Tensor, "batch height width"],
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
    """A method that learns by gradient descent on a loss, in one stage or in several (see `Learner`)."""

    @abstractmethod
    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return how to descend, stage by stage: as the paper did, or the default that is as good much sooner."""

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Do what must be done after the last stage, such as units that only held-out good images can give."""


class FittedDetector(Detector):
    """A method with a closed form: statistics of the normal images, no loss."""

    @abstractmethod
    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Learn from normal images of the config's size."""
