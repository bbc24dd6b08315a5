"""A painting is what the detector says of that image, at the image's own size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metalad.data import load_images, read_category
from metalad.data.images import read_image, read_mask, resize_map
from metalad.methods.metal import Metal
from metalad.methods.variation_model import VariationModel, VariationModelConfig
from metalad.nn.pixels import to_batch
from metalad.pipelines.rendering import paint
from tests.cookies import cookies
from tests.tiny import TINY, tiny_category


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_category(tmp_path_factory.mktemp("data") / "cookie", train=2, good=1, defective=1)


def test_a_painting_is_the_detectors_map_score_and_reconstruction(category: Path) -> None:
    torch.manual_seed(0)
    detector = Metal(TINY).eval()
    samples = read_category(category).test
    images = load_images(samples, TINY.image_size)
    with torch.inference_mode():
        batch = to_batch(images.pixels)
        evidence = detector.evidence(batch)
        prediction = detector.judge(batch, evidence, "raw")
    for index, sample in enumerate(samples):
        painting = paint(detector, sample, images.pixels[index], "raw")
        size = read_image(sample.path).shape[:2]
        np.testing.assert_array_equal(painting.image, read_image(sample.path))
        assert painting.score == pytest.approx(float(prediction.score[index]), rel=1e-5)
        expected = resize_map(prediction.anomaly_map[index].numpy(), size)
        np.testing.assert_allclose(painting.anomaly_map, expected, rtol=1e-4)
        truth = np.zeros(size, bool) if sample.mask is None else read_mask(sample.mask)
        assert painting.truth is not None
        np.testing.assert_array_equal(painting.truth, truth)
        assert painting.white_truth is not None
        assert set(np.unique(painting.white_truth)) <= {0, 255}
        assert painting.reconstruction is not None
        assert painting.reconstruction.shape == painting.image.shape
        assert evidence.expected is not None
        mean = 255 * float(evidence.expected[index].mean())
        assert painting.reconstruction.mean() == pytest.approx(mean, abs=3)


def test_the_overlay_is_outlined_where_the_map_exceeds_the_threshold(category: Path) -> None:
    detector = VariationModel(VariationModelConfig(image_size=(32, 32), smoothing_sigma=1.0))
    detector.fit(cookies(6), seed=0)
    sample = next(sample for sample in read_category(category).test if sample.abnormal)
    painting = paint(detector, sample, load_images([sample], (32, 32)).pixels[0], "raw")
    highest = float(painting.anomaly_map.max())
    np.testing.assert_array_equal(painting.overlay(100 * highest), painting.image)
    assert (painting.overlay(highest / 2) == (0, 229, 204)).all(-1).any()
