"""The quality of the default method on the images that ship with the package; this test takes a minute or more."""

from pathlib import Path

import metalad
from metalad.methods.metal_features import MetalFeaturesConfig


def test_the_default_method_finds_the_defective_cookies(tmp_path: Path) -> None:
    model = metalad.train(metalad.demo_images(), tmp_path / "run", false_alarms=0.05, device="cpu")
    assert (model.method, model.images) == ("metal_features", 31)
    # The photographs have 341×256 pixels: the shorter side stays, the longer one becomes a multiple of 32.
    assert model.stored.detector.config == MetalFeaturesConfig(image_size=(352, 256))
    report = metalad.evaluate(model, metalad.demo_images(), device="cpu")
    counts = report.chosen.confusion
    assert (counts.tp + counts.fn, counts.fp + counts.tn) == (32, 14)
    assert report.metrics.image_auroc is not None
    assert report.metrics.image_auroc >= 0.99
    assert counts.tp >= 31
    assert counts.fp <= 1
