"""A model of random weights, and images of noise, for tests of inference that need no training."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metalad.data.walking import JOURNAL, PAGE_FILES
from metalad.detectors.out_of_fold import calibrate
from metalad.inference.model import Header
from metalad.methods.metal import Metal, MetalConfig
from metalad.storage.model_file import write_model

SIZE = (40, 24)


def noise_run(folder: Path) -> Path:
    """Write a run folder with a calibrated model of random weights, which calls some of the noise images anomalous."""
    torch.manual_seed(0)
    # With its other distances, a model of so small images marks a whole image, and never several regions.
    config = MetalConfig(
        image_size=(32, 32),
        patch_size=8,
        width=16,
        hidden_width=32,
        smoothing_sigma=1.0,
        reconstruction_errors="joint",
        high_pass=False,
        composition=False,
    )
    detector = Metal(config)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    detector.conclude(pixels[:8], pixels[8:])
    summary = calibrate(detector, pixels[:8], pixels[8:])
    header = Header(
        method="metal",
        config=asdict(detector.config),
        calibration=asdict(summary),
        category="noise",
        seed=0,
        protocol="default",
        training={},
        images={"training": 8, "validation": 4, "skipped": 0},
        training_hash="",
        versions={},
        false_alarms=0.2,
        thresholds={},
    )
    write_model(folder / "model.safetensors", detector, header)
    return folder


def draw(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """Write an image of noise at `path`: of low contrast for an even seed, of high contrast for an odd one."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    pixels = np.where(noise > 127, 255, 0).astype(np.uint8) if seed % 2 else noise // 4 + 96
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def draw_many(folder: Path, count: int) -> Path:
    for index in range(count):
        draw(folder / f"{index:03}.png", index)
    return folder


def files_in(folder: Path) -> set[str]:
    """Return the names of the files in a folder without those of the journal and of the page of `predict`."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {file.as_posix() for file in files if file.parts[0] not in (JOURNAL, "index.html", PAGE_FILES)}
