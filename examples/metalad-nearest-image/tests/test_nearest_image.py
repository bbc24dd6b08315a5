import json
from pathlib import Path

import numpy as np
import pytest
import torch
from metalad_nearest_image import NearestImage, NearestImageConfig

from metalad.cli.main import main
from metalad.data.images import write_image


def put_images(folder: Path, seeds: range, *, spot: bool = False) -> None:
    """Write images of a gray square on black, of two brightnesses, with noise, and with a red spot if wanted."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 20, (32, 32, 3)).astype(np.uint8)
        image[8:24, 8:24] += np.uint8(rng.choice([80, 160]))
        if spot:
            image[12:16, 12:16] = (255, 0, 0)
        write_image(folder / f"{seed:03}.png", image)


def metalad(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run metalad, and return its output."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert not code, printed.err
    return printed.out


def test_the_command_line_trains_evaluates_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "square", tmp_path / "run"
    put_images(data / "train" / "good", range(12))
    put_images(data / "test" / "good", range(20, 24))
    put_images(data / "test" / "spot", range(30, 34), spot=True)
    assert "nearest_image" in metalad(capsys, "methods")
    small = ("--set", "image_size=32", "--set", "smoothing_sigma=1", "--set", "side=8")
    metalad(capsys, "train", data, "--out", run, "--method", "nearest_image", "--device", "cpu", "--quiet", *small)
    metalad(capsys, "evaluate", run, data, "--device", "cpu", "--quiet")
    report = json.loads((run / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert report
    lines = metalad(capsys, "predict", run, data / "test" / "spot", "--out", tmp_path / "out", "--json", "--quiet")
    found = [json.loads(line) for line in lines.splitlines()]
    assert len(found) == 4
    assert all(image["is_anomalous"] for image in found)


def test_residuals_are_the_difference_from_the_nearest_good_image() -> None:
    good = np.stack([np.full((32, 32, 3), gray, np.uint8) for gray in (10, 100, 200)])
    detector = NearestImage(NearestImageConfig(image_size=(32, 32), smoothing_sigma=1.0))
    detector.fit(good, 0)
    residuals = detector.residuals(torch.full((1, 3, 32, 32), 120 / 255))
    torch.testing.assert_close(residuals.values, torch.full((1, 3, 32, 32), 20 / 255))
