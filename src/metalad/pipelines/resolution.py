"""Choose the size that images are resized to, for methods that can take any."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from metalad.data.images import image_size
from metalad.data.resolution import MAX_HEADERS, ChosenSize, choose_size
from metalad.data.sample import Sample
from metalad.data.splitting import subsampled_indices
from metalad.detectors.base import DetectorConfig
from metalad.methods import method_named
from metalad.runtime.choices import Protocol, Resolution
from metalad.runtime.errors import ConfigError, ImageError

AUTO = "auto"


def is_automatic(
    method: str | DetectorConfig,
    settings: Mapping[str, Any],
    protocol: Protocol,
    resolution: Resolution | None,
    smallest_defect: float | None,
) -> bool:
    """Return whether `image_size` is chosen from the images: the method can take any, and no size is given.

    Published protocols and config objects have a size of their own.

    Raises:
        ConfigError: a choice is asked for where there is none.
    """
    wanted = [
        text
        for text, given in (
            ("image_size=auto", settings.get("image_size") == AUTO),
            ("resolution", resolution is not None),
            ("smallest_defect", smallest_defect is not None),
        )
        if given
    ]
    if isinstance(method, str):
        kind = method_named(method).load_config()
        possible = multiple_of(kind) is not None and protocol == "default"
        reason = f"{method} with protocol={protocol} has a fixed image_size"
    else:
        possible, reason = False, "a config object has a fixed image_size"
    if settings.get("image_size", AUTO) != AUTO:
        possible, reason = False, f"image_size is given ({settings['image_size']})"
    if wanted and not possible:
        raise ConfigError(f"{wanted[0]} has no effect: {reason}")
    return possible


def without_automatic_size(texts: Iterable[str]) -> list[str]:
    """Return the settings, each NAME=VALUE, without `image_size=auto`, which is not a value that a config can have."""
    return [text for text in texts if text != f"image_size={AUTO}"]


def is_automatic_for(method: str | DetectorConfig, texts: Iterable[str], protocol: Protocol) -> bool:
    """Return `is_automatic` for settings that are texts; `image_size=auto` is ignored where it has no effect."""
    settings = dict(text.split("=", 1) for text in without_automatic_size(texts))
    return is_automatic(method, settings, protocol, None, None)


def multiple_of(kind: type[DetectorConfig]) -> int | None:
    """Return the pixels of which a method's image size is a multiple; None if it cannot be chosen automatically."""
    (field,) = (field for field in dataclasses.fields(kind) if field.name == "image_size")
    multiple: int | None = field.metadata.get("multiple")
    return multiple


def sizes_of(samples: Iterable[Sample]) -> list[tuple[int, int]]:
    """Return height and width of a few hundred readable images, from their headers."""
    samples = tuple(samples)
    sizes = []
    for index in subsampled_indices(len(samples), MAX_HEADERS):
        try:
            sizes.append(image_size(samples[index].path))
        except ImageError:
            continue  # reported when it is read
    return sizes


def resized(
    config: DetectorConfig,
    sizes: list[tuple[int, int]],
    resolution: Resolution | None = None,
    smallest_defect: float | None = None,
) -> tuple[DetectorConfig, ChosenSize | None]:
    """Return the config with the chosen image size, and the choice; both unchanged (and None) without any size."""
    multiple = multiple_of(type(config))
    if not sizes or multiple is None:
        return config, None
    chosen = choose_size(sizes, config.image_size[0], multiple, resolution or "balanced", smallest_defect)
    return dataclasses.replace(config, image_size=chosen.size), chosen
