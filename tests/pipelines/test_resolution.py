"""The image size that is chosen from the training images, in training, fitting and benchmarks."""

from pathlib import Path

import numpy as np
import pytest

import metalad
from metalad.data.images import read_image, write_image
from metalad.methods.variation_model import VariationModelConfig
from metalad.pipelines.benchmark.plan import plan_benchmark
from metalad.runtime.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four wide images of noise for each purpose, as a category."""
    rng = np.random.default_rng(0)
    for part in ("train/good", "test/good", "test/bad"):
        (tmp_path / "strip" / part).mkdir(parents=True)
        for number in range(4):
            write_image(tmp_path / "strip" / part / f"{number}.png", rng.integers(0, 256, (64, 128, 3), np.uint8))
    return tmp_path / "strip"


def test_training_keeps_the_aspect_ratio_and_reports_the_size(folder: Path, tmp_path: Path) -> None:
    model = metalad.train(folder, tmp_path / "run", method="variation_model", device="cpu")
    assert model.image_size == (256, 512)
    assert "64x128 (height x width) are resized to 256x512" in (tmp_path / "run" / "train.log").read_text()
    arrays = [read_image(path) for path in sorted((folder / "train/good").iterdir())]
    assert metalad.fit(iter(arrays), method="variation_model", device="cpu").image_size == (256, 512)


def test_finished_run_is_resumed_with_the_chosen_size(folder: Path, tmp_path: Path) -> None:
    first = metalad.train(folder, tmp_path / "run", method="variation_model", device="cpu")
    again = metalad.train(folder, tmp_path / "run", method="variation_model", device="cpu", resume=True)
    assert again.image_size == first.image_size


def test_size_can_be_given(folder: Path, tmp_path: Path) -> None:
    def trained(**settings: object) -> tuple[int, int]:
        method = settings.pop("method", "variation_model")
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        return metalad.train(folder, run, method=method, device="cpu", **settings).image_size  # type: ignore[arg-type]

    assert trained(image_size=40) == (40, 40)
    assert trained(image_size="auto") == (256, 512)
    assert trained(resolution="fast") == (192, 384)
    assert trained(method=VariationModelConfig()) == (256, 256)


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        ("variation_model", {"image_size": 40, "resolution": "fine"}, "image_size is given"),
        ("variation_model", {"resolution": "fine", "protocol": "paper"}, "protocol=paper"),
        ("vt_adl", {"image_size": "auto"}, "fixed image_size"),
        (VariationModelConfig(), {"smallest_defect": 5.0}, "config object"),
    ],
)
def test_choice_without_effect_is_refused(
    folder: Path, tmp_path: Path, method: str, settings: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        metalad.train(folder, tmp_path / "run", method=method, device="cpu", **settings)  # type: ignore[arg-type]


def test_benchmark_chooses_the_size_per_category(folder: Path) -> None:
    def sizes(settings: list[str], method: str | VariationModelConfig = "variation_model") -> list[list[int]]:
        plan = plan_benchmark([method], [folder], settings=settings)
        return [plan.configs[cell.key]["image_size"] for cell in plan.cells]

    assert sizes([]) == sizes(["image_size=auto"]) == [[256, 512]]
    assert sizes(["image_size=64"]) == [[64, 64]]
    assert sizes([], VariationModelConfig()) == [[256, 256]]
