"""The settings of a run: from a method's name and keyword settings to its frozen config."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from metalad.detectors.base import DetectorConfig
from metalad.methods import Method, method_named, methods
from metalad.pipelines.resolution import AUTO
from metalad.runtime.choices import Protocol, WantedPrecision
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import check_choice, from_values, number, whole_number

DEFAULT_METHOD = "metal_features"


def method_and_config(method: str | DetectorConfig, settings: Mapping[str, Any]) -> tuple[Method, DetectorConfig]:
    """Return a method and its config; `settings` replace its defaults, or the values of a given config.

    With `image_size="auto"` the config has the default size, until `metalad.pipelines.resolution` replaces it.

    Raises:
        ConfigError: no such method or setting, or an impossible value.
    """
    settings = {name: value for name, value in settings.items() if (name, value) != ("image_size", AUTO)}
    if isinstance(method, str):
        found = method_named(method)
        return found, from_values(found.load_config(), settings)
    for found in methods().values():
        if found.load_config() is type(method):
            given = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
            return found, from_values(type(method), given | dict(settings))
    raise ConfigError(f"{type(method).__name__} belongs to no registered method; there are: {', '.join(methods())}")


def check_training(
    epochs: int | None, minutes: float | None, seed: int, protocol: Protocol, precision: WantedPrecision
) -> None:
    """Check the settings that `train` and `fit` share.

    Raises:
        ConfigError: an impossible value.
    """
    if epochs is not None and whole_number("epochs", epochs) < 1:
        raise ConfigError(f"epochs is {epochs}; it must be at least 1")
    if minutes is not None and not 0 < number("minutes", minutes) < math.inf:
        raise ConfigError(f"minutes is {minutes}; it must be more than 0")
    check_choice("protocol", protocol, Protocol)
    check_choice("precision", precision, WantedPrecision)
    if not 0 <= whole_number("seed", seed) < 2**63:
        raise ConfigError(f"seed is {seed}; it must not be negative, nor 2^63 or more")
