"""Train a method on images in memory."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from metalad.data.convert import is_image, to_rgb
from metalad.data.images import read_image, resize_image
from metalad.data.splitting import choose
from metalad.detectors.base import DetectorConfig, Protocol
from metalad.pipelines.config import DEFAULT_METHOD, check_training, method_and_config
from metalad.pipelines.model import Model
from metalad.pipelines.train import (
    VALIDATION_FRACTION,
    calibrated_model,
    fit_detector,
    run_settings,
    select_plans,
    select_precision,
)
from metalad.runtime.errors import DataError
from metalad.runtime.progress import bars
from metalad.runtime.settings import rate
from metalad.training.device import choose_device
from metalad.training.loop import Callback
from metalad.training.precision import WantedPrecision
from metalad.training.process_group import SINGLE_PROCESS


def fit(
    images: Iterable[Any],
    *,
    method: str | DetectorConfig = DEFAULT_METHOD,
    protocol: Protocol = "default",
    seed: int = 0,
    epochs: int | None = None,
    minutes: float | None = None,
    false_alarms: float = 0.01,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    callback: Callback | None = None,
    progress: bool = False,
    **settings: Any,
) -> Model:
    """Train on good images in memory, calibrate, and return the model. Nothing is written; see `Model.save`.

    A tenth of the images is held out for validation, as in `train`.

    Args:
        images: good images, two or more: NumPy arrays, Pillow images, torch tensors (see `Model.predict`), or paths of
            files. They may differ in size. An iterator is read once.
        method, protocol, seed, epochs, minutes, false_alarms, device, precision, callback, progress, settings: as of
            `metalad.train`.

    Raises:
        DataError: fewer than two images, or an array of another shape, type or range. ImageError: a file cannot be
        read. ConfigError: an impossible setting.
    """
    check_training(epochs, minutes, seed, protocol, precision)
    false_alarms = rate("false_alarms", false_alarms)
    chosen, config = method_and_config(method, settings)
    device_ = choose_device(device)
    pixels, hashes = _pixels(images, config.image_size)
    training, validation = _split(pixels, hashes, seed)
    torch.manual_seed(seed)
    detector = chosen.load()(config).to(device_)
    precision_ = select_precision(detector, precision, None)
    with bars(shown=progress):
        plans = select_plans(detector, protocol, epochs, minutes, precision_, training, None, SINGLE_PROCESS)
        training_hash = hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
        run = run_settings(chosen.name, detector, protocol, plans, seed, false_alarms, training_hash, precision_)
        out_of_fold = fit_detector(detector, run, training, validation, None, SINGLE_PROCESS, callback)
        return Model(calibrated_model(detector, run, "images", (training, validation), 0, out_of_fold, None))


def _pixels(
    images: Iterable[Any], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "images height width 3"], list[str]]:
    """Return all images at the model's size, and a hash of each at its own."""
    if isinstance(images, str | Path) or is_image(images):
        raise DataError("fit takes a list or an iterable of images; use metalad.train for a folder")
    pixels, hashes = [], []
    for number, value in enumerate(images):
        is_path = isinstance(value, str | Path)
        image = read_image(Path(value)) if is_path else to_rgb(value, f"images[{number}]")
        hashes.append(hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest())
        pixels.append(resize_image(image, size))
    if len(pixels) < 2:
        raise DataError(f"found {len(pixels)} good images, but at least 2 are needed, for training and for validation")
    return np.stack(pixels), hashes


def _split(
    pixels: UInt8[np.ndarray, "images height width 3"], hashes: list[str], seed: int
) -> tuple[UInt8[np.ndarray, "_ height width 3"], UInt8[np.ndarray, "_ height width 3"]]:
    """Hold out a tenth; identical images are on the same side, unless one side would be empty."""
    count = min(max(round(VALIDATION_FRACTION * len(pixels)), 1), len(pixels) - 1)
    held_out = choose(hashes, count, seed)
    if not 0 < len(held_out) < len(pixels):
        held_out = choose([str(index) for index in range(len(pixels))], count, seed)
    mask = np.isin(np.arange(len(pixels)), list(held_out))
    return pixels[~mask], pixels[mask]
