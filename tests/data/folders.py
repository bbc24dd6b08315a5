"""Small image folders for the tests."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from metalad.data import Sample


def put_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    """Write a noise image; equal seeds and sizes give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def put_mask(path: Path, size: tuple[int, int] = (12, 10)) -> Path:
    """Write a mask with one anomalous pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[0, 0] = 255
    Image.fromarray(mask).save(path)
    return path


def put_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def put_samples(folder: Path, seeds: Iterable[int]) -> list[Sample]:
    """Write one good image per seed and return the samples."""
    paths = [put_image(folder / f"{index:03}.png", seed) for index, seed in enumerate(seeds)]
    return [Sample(path, False, "good") for path in paths]
