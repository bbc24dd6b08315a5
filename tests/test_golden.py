"""The quality of the default method on the images that ship with the package; this test takes most of a minute."""

from pathlib import Path

import metalad
from metalad.data import read_category
from metalad.methods.metal_features import MetalFeaturesConfig
from metalad.pipelines.resolution import resized, sizes_of


def test_the_default_method_finds_the_defective_cookies(tmp_path: Path) -> None:
    # A fast resolution takes 40 % of the time of the default one, and finds the same defects.
    model = metalad.train(metalad.demo_images(), tmp_path / "run", false_alarms=0.05, resolution="fast", device="cpu")
    assert (model.method, model.images) == ("metal_features", 31)
    assert model.stored.detector.config == MetalFeaturesConfig(image_size=(256, 192))
    report = metalad.evaluate(model, metalad.demo_images(), device="cpu")
    counts = report.chosen.confusion
    assert (counts.tp + counts.fn, counts.fp + counts.tn) == (32, 14)
    assert report.metrics.image_auroc is not None
    assert report.metrics.image_auroc >= 0.99
    assert counts.tp >= 31
    assert counts.fp <= 1


def test_the_default_resolution_keeps_the_shorter_side_of_the_cookies() -> None:
    # The photographs have 341×256 pixels: the shorter side stays, the longer one becomes a multiple of 32.
    config, _ = resized(MetalFeaturesConfig(), sizes_of(read_category(metalad.demo_images()).train))
    assert config == MetalFeaturesConfig(image_size=(352, 256))
