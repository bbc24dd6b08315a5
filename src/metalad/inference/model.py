"""A model that scores images, whatever computes the scores: its header, its thresholds, its engine."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from metalad.data.reading import FULL_RANGE
from metalad.inference.engine import Engine
from metalad.inference.threshold import smallest_supported_rate, threshold
from metalad.results.caution import Caution, extrapolation_caution
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import check_choice, rate, score

FORMAT = 6
"""Of model files."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The contents of a model file apart from its tensors.

    training_hash: sha256 over the training images' names and contents.
    thresholds: image scores above which an image is anomalous, one for each scoring, at the rate `false_alarms`.
    white_level: the value of 16-bit image files that is read as 255.
    image_hashes: of the pixels of each training and validation image, see `metalad.data.likeness.pixel_hash`.
    """

    format: int = FORMAT
    method: str
    config: Mapping[str, Any]
    calibration: Mapping[str, Any]
    category: str
    seed: int
    protocol: str
    training: Mapping[str, Any]
    images: Mapping[str, int]
    training_hash: str
    versions: Mapping[str, str]
    false_alarms: float
    thresholds: Mapping[str, float]
    white_level: int = FULL_RANGE
    image_hashes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields without the hashes, which may be many, as JSON's own types."""
        values = dataclasses.asdict(self)
        del values["image_hashes"]
        return values


class ScoringModel(ABC):
    """A model ready for inference.

    header: what it was trained with. path: its file, None if it is not stored.
    """

    header: Header
    path: Path | None

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """What computes scores and maps."""

    @abstractmethod
    def normal_scores(self, scoring: Scoring) -> Float[np.ndarray, " images"]:
        """Return image scores of good images that took no part in what they are scored by."""

    def scoring(self, wanted: Scoring | None) -> Scoring:
        """Return the wanted scoring, by default the model's own.

        Raises:
            ConfigError: no such scoring.
        """
        if wanted is None:
            own: Scoring = self.header.config["scoring"]
            return own
        check_choice("scoring", wanted, Scoring)
        return wanted

    def threshold(self, false_alarms: float | None = None, scoring: Scoring | None = None) -> float:
        """Return the image score that good images exceed with probability `false_alarms`, by default the model's own.

        Raises:
            ConfigError: `false_alarms` is not between 0 and 1, or no such scoring.
        """
        wanted, name = self.rate(false_alarms), self.scoring(scoring)
        if wanted == self.header.false_alarms and name in self.header.thresholds:
            return self.header.thresholds[name]  # an older version may have computed it by another rule
        return self.computed_threshold(wanted, name)

    def computed_threshold(self, false_alarms: float, scoring: Scoring) -> float:
        """Return the threshold for a rate, computed from `normal_scores`."""
        return threshold(self.normal_scores(scoring), false_alarms)

    def threshold_or(
        self, threshold: float | None, false_alarms: float | None = None, scoring: Scoring | None = None
    ) -> float:
        """Return the given threshold, or else the one for a false-alarm rate.

        Raises:
            ConfigError: both are given, or the threshold is not a positive finite number; or as of `threshold`.
        """
        if threshold is None:
            return self.threshold(false_alarms, scoring)
        if false_alarms is not None:
            raise ConfigError("threshold and false_alarms exclude each other; give one")
        self.scoring(scoring)
        value = score("threshold", threshold)
        if not 0 < value < math.inf:
            raise ConfigError(f"threshold is {threshold}; it must be a score above 0")
        return value

    def rate(self, false_alarms: float | None = None) -> float:
        """Return a false-alarm rate, by default the model's own.

        Raises:
            ConfigError: `false_alarms` is not between 0 and 1.
        """
        return self.header.false_alarms if false_alarms is None else rate("false_alarms", false_alarms)

    def caution(self, false_alarms: float | None = None, scoring: Scoring | None = None) -> Caution | None:
        """Return a caution if the good images are too few to support a false-alarm rate, else None."""
        scores = self.normal_scores(self.scoring(scoring))
        if len(scores) * self.rate(false_alarms) >= 1:
            return None
        supported = smallest_supported_rate(len(scores))
        return extrapolation_caution(
            images=len(scores),
            rate=self.rate(false_alarms),
            threshold=self.threshold(false_alarms, scoring),
            highest=float(scores.max()),
            alternative=(supported, self.threshold(supported, scoring)),
        )
