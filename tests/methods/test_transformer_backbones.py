"""Every method that uses a backbone can use a vision transformer of timm; timm must be installed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import metalad
from metalad.methods import OWN, method_named
from metalad.nn.pixels import to_batch
from metalad.storage.model_file import read_model
from tests.cookies import cookies, put_cookies

SIZE = (64, 90)
"""The second side is a multiple neither of the patch size, 16, nor of any stride."""
FIXED_ENCODERS = "piade"
SETTINGS: dict[str, dict[str, Any]] = {
    "padim": {"channels": 8, "grid": "s8"},
    "feature_dictionary": {"samples": 100, "image_size": (64, 88)},
    "metal_features": {"codebook_size": 32},
    "efficientad": {"image_size": (64, 92), "width": 4, "channels": 16, "autoencoder": 2},
}


def with_backbone() -> list[str]:
    fields = {method.name: dataclasses.fields(method.load_config()) for method in OWN}
    return [
        name
        for name in fields
        if name != FIXED_ENCODERS and {"backbone", "weights"} <= {field.name for field in fields[name]}
    ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with random weights of timm's small transformer for tests."""
    timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


def test_methods_with_a_backbone_include_the_usual_ones() -> None:
    assert {"patchcore", "padim", "metal_features", "student_teacher", "efficientad", "mkd"} <= set(with_backbone())


@pytest.mark.parametrize("name", with_backbone())
def test_trains_and_predicts_with_a_transformer(name: str, weights: Path, tmp_path: Path) -> None:
    images = put_cookies(tmp_path / "images", 6)
    settings: dict[str, Any] = {"image_size": SIZE, "smoothing_sigma": 1.0, **SETTINGS.get(name, {})}
    settings |= {"backbone": "test_vit", "weights": str(weights)}
    config = method_named(name).load_config()(**settings)
    model = metalad.train(images, tmp_path / "run", method=config, epochs=1, device="cpu")
    assert model.path is not None
    detector = read_model(model.path).detector
    with torch.inference_mode():
        scores, maps = detector(to_batch(cookies(8, detector.config.image_size)[6:]))
    assert maps.shape == (2, *settings["image_size"])
    assert maps.isfinite().all()
    assert scores.isfinite().all()
    assert (maps.flatten(1).std(1) > 0).all()
