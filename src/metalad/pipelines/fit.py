"""Train a method on images in memory."""

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from metalad.data.convert import decoded_16_bits, is_image, to_rgb
from metalad.data.decoding import decode_file, is_16_bit_file
from metalad.data.framing import Framing
from metalad.data.images import decoded_rgb, image_size, read_image
from metalad.data.likeness import is_single_color, likeness_notes, pixel_hash
from metalad.data.reading import Reading, common_white_level, highest_value
from metalad.data.sixteen_bits import Decoded
from metalad.data.splitting import choose
from metalad.detectors.base import Detector, DetectorConfig, FittedDetector, Protocol
from metalad.pipelines.config import DEFAULT_METHOD, check_training, method_and_config
from metalad.pipelines.model import Model
from metalad.pipelines.resolution import is_automatic, resized
from metalad.pipelines.schedule import require_descent, select_plans
from metalad.pipelines.screening import screen, screening_lines
from metalad.pipelines.train import (
    VALIDATION_FRACTION,
    calibrated_model,
    fit_detector,
    require_images,
    run_settings,
    select_precision,
    with_image_facts,
)
from metalad.runtime.choices import Resolution
from metalad.runtime.errors import DataError
from metalad.runtime.progress import bars, logger
from metalad.runtime.settings import rate
from metalad.training.budget import Budget
from metalad.training.device import choose_device
from metalad.training.loop import Callback
from metalad.training.precision import WantedPrecision
from metalad.training.process_group import SINGLE_PROCESS

FIRST_IMAGES = 16
"""Images whose size is measured before the others are taken from an iterator."""


def fit(
    images: Iterable[Any],
    *,
    method: str | DetectorConfig = DEFAULT_METHOD,
    protocol: Protocol = "default",
    seed: int = 0,
    epochs: int | None = None,
    minutes: float | None = None,
    false_alarms: float = 0.01,
    resolution: Resolution | None = None,
    smallest_defect: float | None = None,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    callback: Callback | None = None,
    progress: bool = False,
    **settings: Any,
) -> Model:
    """Train on good images in memory, calibrate, and return the model. Nothing is written; see `Model.save`.

    A tenth of the images is held out for validation, unless the method has a closed form, as in `train`.

    Args:
        images: good images, two or more (see `Detector.required_images`): NumPy arrays, Pillow images, torch tensors
            (see `Model.predict`), or paths of files. They may differ in size. An iterator is read once.
        method, protocol, seed, epochs, minutes, false_alarms: as of `metalad.train`.
        resolution, smallest_defect: as of `metalad.train`; the size is chosen from the first images.
        device, precision, callback, progress, settings: as of `metalad.train`.

    Raises:
        DataError: fewer images than the method needs, or an array of another shape, type or range. ImageError: a file
        cannot be read. ConfigError: an impossible setting.
    """
    check_training(epochs, minutes, seed, protocol, precision)
    budget = None if minutes is None else Budget(minutes)
    false_alarms = rate("false_alarms", false_alarms)
    chosen, config = method_and_config(method, settings)
    require_descent(chosen.load(), chosen.name, epochs, minutes)
    device_ = choose_device(device)
    if is_automatic(method, settings, protocol, resolution, smallest_defect):
        first, images = _peek(images)
        config, size = resized(
            config, [_size(value, index) for index, value in enumerate(first)], resolution, smallest_defect
        )
        for line in size.lines() if size else ():
            logger.info("%s", line)
    loaded = _load(images, config.framing, chosen.load())
    is_validation = np.zeros(len(loaded.hashes), bool)
    if not issubclass(chosen.load(), FittedDetector):
        is_validation = _validation_mask(loaded.hashes, seed)
    training, validation = loaded.pixels[~is_validation], loaded.pixels[is_validation]
    torch.manual_seed(seed)
    detector = chosen.load()(config).to(device_)
    precision_ = select_precision(detector, precision, None)
    with bars(shown=progress):
        pixels = training, validation
        plans = select_plans(detector, protocol, epochs, budget, precision_, *pixels, None, SINGLE_PROCESS)
        training_hash = hashlib.sha256("".join(sorted(loaded.hashes)).encode()).hexdigest()
        run = run_settings(chosen.name, detector, protocol, plans, seed, false_alarms, training_hash, precision_)
        out_of_fold = fit_detector(detector, run, training, validation, None, SINGLE_PROCESS, callback)
        model = calibrated_model(detector, run, "images", (training, validation), 0, out_of_fold, None)
    order = np.argsort(is_validation, kind="stable")  # training images first
    names = [loaded.names[index] for index in order]
    for line in screening_lines(screen(model, training, validation, names), names, None):
        logger.warning("%s", line)
    hashes = [*(loaded.hashes[index] for index in order), *detector.further_hashes]
    return Model(with_image_facts(model, loaded.white_level, hashes))


class _Loaded(NamedTuple):
    """Images at the model's size, and of each its hash at its own size and its name in messages."""

    pixels: UInt8[np.ndarray, "images height width 3"]
    hashes: list[str]
    names: list[str]
    white_level: int


def _peek(images: Iterable[Any]) -> tuple[list[Any], Iterable[Any]]:
    """Return the first images, and an iterable of all."""
    _require_several(images)
    iterator = iter(images)
    first = list(itertools.islice(iterator, FIRST_IMAGES))
    return first, itertools.chain(first, iterator)


def _size(value: Any, number: int) -> tuple[int, int]:
    if isinstance(value, str | Path):
        return image_size(Path(value))
    height, width, _ = to_rgb(value, f"images[{number}]").shape
    return height, width


def _require_several(images: Iterable[Any]) -> None:
    if isinstance(images, str | Path):
        raise DataError("fit takes a list or an iterable of images; use metalad.train for a folder")
    if is_image(images):
        shape = tuple(getattr(images, "shape", ()))
        found = f"a batch, {shape}; give its images one by one, as list(x)" if len(shape) == 4 else "one image"
        raise DataError(f"fit takes a list or an iterable of images, got {found}")


def _load(images: Iterable[Any], framing: Framing, kind: type[Detector]) -> _Loaded:
    """Convert all images; those with 16 bits are held until the white level of all of them is known."""
    _require_several(images)
    names: list[str] = []
    waiting: dict[int, Path | Decoded] = {}
    converted: dict[int, tuple[str, bool, UInt8[np.ndarray, "height width 3"]]] = {}
    reading = Reading()
    for number, value in enumerate(images):
        path = Path(value) if isinstance(value, str | Path) else None
        names.append(str(value) if path else f"images[{number}]")
        deep = _with_16_bits(path) if path else decoded_16_bits(value, names[-1])
        if deep is not None:
            waiting[number] = deep
        else:
            image = read_image(path, reading) if path else to_rgb(value, names[-1], reading)
            converted[number] = _facts(image, framing)
    require_images(kind, len(names))
    reading.white_level = common_white_level(
        highest_value(decode_file(deep) if isinstance(deep, Path) else deep) for deep in waiting.values()
    )
    for number, deep in waiting.items():
        path = Path(names[number])
        image = read_image(path, reading) if isinstance(deep, Path) else decoded_rgb(path, deep, reading)
        converted[number] = _facts(image, framing)
    hashes, single_color, pixels = zip(*(converted[number] for number in range(len(names))), strict=True)
    for line in (*reading.notes.lines(), *likeness_notes(names, hashes, single_color)):
        logger.warning("%s", line)
    return _Loaded(np.stack(pixels), list(hashes), names, reading.white_level)


def _with_16_bits(path: Path) -> Path | None:
    return path if is_16_bit_file(path) else None


def _facts(
    image: UInt8[np.ndarray, "height width 3"], framing: Framing
) -> tuple[str, bool, UInt8[np.ndarray, "_ _ 3"]]:
    return pixel_hash(image), is_single_color(image), framing.place(image)


def _validation_mask(hashes: list[str], seed: int) -> Bool[np.ndarray, " images"]:
    """Hold out a tenth; identical images are on the same side, unless one side would be empty."""
    count = min(max(round(VALIDATION_FRACTION * len(hashes)), 1), len(hashes) - 1)
    held_out = choose(hashes, count, seed)
    if not 0 < len(held_out) < len(hashes):
        held_out = choose([str(index) for index in range(len(hashes))], count, seed)
    return np.isin(np.arange(len(hashes)), list(held_out))
