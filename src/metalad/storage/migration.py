"""Read model files of older formats: the names that settings and tensors had then, and the names they have now.

Format 4 (metalad 0.1) differs from format 5 in names, and in that it holds a calibration, which was never applied, of
methods whose raw map is in units of good images already. Every other value is used as it is. Format 5 (metalad 0.2)
lacks the white level, which is the full range, and the hashes of the training images, which are then unknown.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

OLDEST_FORMAT = 4
"""The oldest format that can be read."""

Value = TypeVar("Value")

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "metal": {"light": "photometric", "partner": "auxiliary_density"},
    "metal_features": {
        "words": "codebook_size",
        "usual_light": "photometric_normalization",
        "steps": "context_steps",
    },
    "feature_dictionary": {"words": "dictionary_size"},
    "variation_model": {"floor": "min_variation"},
    "texture_inspection": {"images": "mixture_images"},
}
"""Old and new name of each setting that was renamed, by method."""

MISSING: Mapping[str, Mapping[str, Any]] = {
    "metal": {"selection": "k-means", "high_pass": False, "composition": False, "reconstruction_errors": "joint"},
    "metal_features": {
        "selection": "k-means",
        "composition": False,
        "positional_mean": False,
        "context_steps": 0,
        "context_components": 16,
        "context_sigma": 0.0,
        "context_in_score": True,
    },
}
"""Settings that older versions did not have, and the value that describes what they did, by method."""
MISSING_OF_ALL: Mapping[str, Any] = {"image_scale": 0.0}
"""The same for settings of every method."""

SELF_CALIBRATED = ("metal_features",)
"""Methods of format 4 whose raw map is in units of good images."""
PHOTOMETRIC = ((r"^light\.say$", "photometric.exponents"), (r"^light\.", "photometric."))
TENSORS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "metal": (
        *PHOTOMETRIC,
        (r"^spread$", "scale"),
        (r"^appearance\.patch\.words$", "appearance.patch.entries"),
        (r"^appearance\.place\.", "appearance.position."),
        (r"^appearance\.units\.", "appearance.standardization."),
        (r"^appearance\.spread$", "appearance.scale"),
    ),
    "metal_features": (
        *PHOTOMETRIC,
        (r"^say$", "density_weights"),
        (r"^(fine|deep)_units\.", r"\1_standardization."),
        (r"^surprise\.usual$", "log_distance.mean"),
        (r"^surprise\.reach$", "log_distance.scale"),
        (r"^densities\.even\.words$", "densities.per_stride.entries"),
        (r"^densities\.every\.words$", "densities.per_channel.entries"),
        (r"^densities\.deep\.words$", "densities.deep.entries"),
        (r"^densities\.place\.", "densities.position."),
        (r"^densities\.surroundings\.", "densities.context."),
    ),
    "gt": ((r"^usual$", "score_mean"), (r"^deviation$", "score_deviation")),
    "texture_inspection": ((r"^usual$", "level_mean"), (r"^deviation$", "level_deviation")),
    "student_teacher": ((r"^school\.", "ensemble."),),
}
"""Patterns of old names of tensors and what replaces them, by method."""
SHARED_TENSORS = (
    (r"^calibration\.surprise\.usual$", "calibration.log_distance.mean"),
    (r"^calibration\.surprise\.reach$", "calibration.log_distance.scale"),
)
"""The same for tensors that any method may have."""


def migrate_settings(method: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return settings of format 4 under the names of today."""
    renamed = SETTINGS.get(method, {})
    return {renamed.get(name, name): value for name, value in values.items()}


def complete_settings(method: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return settings of any format with those that did not exist when they were written."""
    return {**MISSING_OF_ALL, **MISSING.get(method, {}), **values}


def migrate_tensors(method: str, tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return tensors of format 4 under the names of today."""
    patterns = (*TENSORS.get(method, ()), *SHARED_TENSORS)
    unused = "calibration." if method in SELF_CALIBRATED else "\0"
    return {_renamed(name, patterns): tensor for name, tensor in tensors.items() if not name.startswith(unused)}


def migrate_header(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of a model file of format 4 as one of today."""
    migrated = {**values, "config": migrate_settings(values["method"], values["config"])}
    if values["method"] in SELF_CALIBRATED:
        migrated["calibration"] = {"kind": "own", "log_likelihood": {}}
    return migrated


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name
