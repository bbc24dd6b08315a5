"""The detector base class: image scores, and errors of detectors that are not fitted or not calibrated."""

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from metalad.detectors.base import Detector, DetectorConfig, FittedDetector
from metalad.detectors.calibration import Calibration
from metalad.detectors.residuals import Residuals
from metalad.nn.pixels import Pixels, to_batch
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

SIZE = (32, 32)


class MeanImage(FittedDetector):
    """Residuals from the mean of the training images; its own image score is 7."""

    name = "mean_image"
    has_own_score = True
    mean: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", None)

    def fit(self, pixels: Pixels, seed: int) -> None:
        del seed
        self.mean = to_batch(pixels[:]).mean(0)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        return Residuals(images - self.mean, score=torch.full((len(images),), 7.0))


class WithoutOwnScore(MeanImage):
    has_own_score = False


def fitted(**settings: object) -> Detector:
    detector = MeanImage(DetectorConfig(image_size=SIZE, smoothing_sigma=1.0, **settings))  # type: ignore[arg-type]
    detector.fit(cookies(6), 0)
    return detector


@pytest.mark.parametrize(
    ("image_score", "expected"),
    [
        ("max", lambda pixels: pixels.max(1)),
        ("mean", lambda pixels: pixels.mean(1)),
        ("top-k", lambda pixels: np.sort(pixels, 1)[:, -10:].mean(1)),  # 1 % of 32 × 32 pixels
        ("own", lambda pixels: np.full(len(pixels), 7.0)),
    ],
)
def test_the_image_score_is_computed_from_the_map(image_score: str, expected: object) -> None:
    detector, images = fitted(image_score=image_score, scoring="raw"), to_batch(cookies(9)[6:])
    with torch.no_grad():
        prediction = detector(images)
        alone = detector.image_scores(detector.residuals(images), "raw")
    assert callable(expected)
    np.testing.assert_allclose(prediction.score, expected(prediction.anomaly_map.flatten(1).numpy()), rtol=1e-6)
    assert torch.equal(alone, prediction.score)


def test_an_own_score_is_refused_for_methods_without_one() -> None:
    with pytest.raises(ConfigError, match="has no image score of its own"):
        WithoutOwnScore(DetectorConfig(image_size=SIZE, image_score="own"))


def test_an_unfitted_detector_raises() -> None:
    detector = MeanImage(DetectorConfig(image_size=SIZE, scoring="raw"))
    for call in (lambda: detector(to_batch(cookies(1))), lambda: detector.residuals_of(cookies(1))):
        with pytest.raises(RuntimeError, match="mean_image is not fitted: mean"):
            call()


def test_an_uncalibrated_detector_raises_for_calibrated_scores_only() -> None:
    detector, images = fitted(), to_batch(cookies(3))
    residuals = detector.residuals(images)
    detector.predict(images, residuals, "raw")
    for call in (
        lambda: detector(images),
        lambda: detector.predict(images, residuals, "calibrated"),
        lambda: detector.image_scores(residuals, "calibrated"),
    ):
        with pytest.raises(RuntimeError, match="mean_image is not calibrated"):
            call()
    detector.calibration = Calibration.fit("none", residuals)
    assert torch.equal(detector(images).score, detector.image_scores(residuals, "calibrated"))


# Residuals


def test_residuals_are_selected_and_concatenated_with_all_their_parts() -> None:
    values, reconstruction, distances = (torch.rand(5, channels, 4, 4) for channels in (2, 3, 1))
    whole = Residuals(
        values, reconstruction, torch.rand(5), torch.rand(5), distances, 2, torch.rand(5, 3), torch.rand(5, 4, 4)
    )
    again = Residuals.concatenate((whole.select(torch.arange(2)), whole.select(torch.arange(5) >= 2)))
    for one, other in zip(whole, again, strict=True):
        assert one is not None
        assert other is not None
        assert one == other if isinstance(one, int) else torch.equal(one, torch.as_tensor(other))
    bare = Residuals.concatenate((Residuals(whole.values), Residuals(whole.values)))
    assert bare._replace(values=whole.values) == (whole.values, None, None, None, None, 1, None, None)
    mixed = Residuals.concatenate((whole, Residuals(whole.values, parts=2)))
    assert len(mixed.values) == 10
    assert mixed._replace(values=whole.values) == (whole.values, None, None, None, None, 2, None, None)
