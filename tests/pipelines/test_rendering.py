"""The pictures of a test image, at the image's own size, are those of the detector's output."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metalad.data import load_images, read_category
from metalad.data.images import read_image, read_mask, resize_map
from metalad.methods.metal import Metal
from metalad.methods.variation_model import VariationModel, VariationModelConfig
from metalad.nn.pixels import to_batch
from metalad.pipelines.rendering import infer_and_render
from tests.cookies import cookies
from tests.tiny import TINY, tiny_category


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_category(tmp_path_factory.mktemp("data") / "cookie", train=2, good=1, defective=1)


def test_a_rendering_has_the_detectors_map_score_and_reconstruction(category: Path) -> None:
    torch.manual_seed(0)
    detector = Metal(TINY).eval()
    detector.conclude(cookies(6), cookies(1))
    samples = read_category(category).test
    images = load_images(samples, TINY.image_size)
    with torch.inference_mode():
        batch = to_batch(images.pixels)
        residuals = detector.residuals(batch)
        prediction = detector.predict(batch, residuals, "raw")
    for index, sample in enumerate(samples):
        rendering = infer_and_render(detector, sample, "raw", batch_size=2)
        size = read_image(sample.path).shape[:2]
        np.testing.assert_array_equal(rendering.image, read_image(sample.path))
        assert rendering.score == pytest.approx(float(prediction.score[index]), rel=1e-5)
        expected = resize_map(prediction.anomaly_map[index].numpy(), size)
        np.testing.assert_allclose(rendering.anomaly_map, expected, rtol=1e-4)
        truth = np.zeros(size, bool) if sample.mask is None else read_mask(sample.mask)
        assert rendering.truth is not None
        np.testing.assert_array_equal(rendering.truth, truth)
        assert rendering.white_truth is not None
        assert set(np.unique(rendering.white_truth)) <= {0, 255}
        assert rendering.reconstruction is not None
        assert rendering.reconstruction.shape == rendering.image.shape
        assert residuals.reconstruction is not None
        mean = 255 * float(residuals.reconstruction[index].mean())
        assert rendering.reconstruction.mean() == pytest.approx(mean, abs=3)


def test_the_overlay_is_outlined_where_the_map_exceeds_the_threshold(category: Path) -> None:
    detector = VariationModel(VariationModelConfig(image_size=(32, 32), smoothing_sigma=1.0))
    detector.fit(cookies(6), seed=0)
    sample = next(sample for sample in read_category(category).test if sample.abnormal)
    rendering = infer_and_render(detector, sample, "raw", batch_size=1)
    highest = float(rendering.anomaly_map.max())
    np.testing.assert_array_equal(rendering.overlay(100 * highest), rendering.image)
    assert (rendering.overlay(highest / 2) == (0, 229, 204)).all(-1).any()
