"""Open a model of any kind: a trained one, which needs torch, or an exported file, which does not."""

import importlib.util
from pathlib import Path

from metalad.inference.model import ScoringModel
from metalad.runtime.errors import ConfigError

EXPORTED_SUFFIXES = (".onnx", ".xml")


def is_exported(path: Path) -> bool:
    """Return whether a path is named like an exported model: ONNX, or OpenVINO's pair of .xml and .bin."""
    return path.suffix.lower() in EXPORTED_SUFFIXES and not path.is_dir()


def open_model(path: Path, device: str = "auto") -> ScoringModel:
    """Read a run folder, a model file, or an exported file.

    device: `cpu`, `cuda`, or `auto` for a GPU where there is one; exported files run on the CPU.

    Raises:
        ModelFileError: no usable model. ConfigError: there is no such device, or a package is missing: the method, or
            what runs the model.
    """
    if is_exported(path):
        if device not in ("auto", "cpu"):
            raise ConfigError(f"device is {device!r}, but {path} is an exported model, which runs on the CPU; use cpu")
        from metalad.storage.exported import read_exported

        return read_exported(path)
    if any(importlib.util.find_spec(name) is None for name in ("torch", "metalad.methods")):
        raise ConfigError(
            f"{path} is not an exported model, and trained ones need torch, which is not installed here; install "
            "metalad instead of metalad-runtime, or give a file that `metalad export` wrote (.onnx or .xml)"
        )
    from metalad.storage.model_file import read_model
    from metalad.training.device import choose_device

    return read_model(path, str(choose_device(device)))
