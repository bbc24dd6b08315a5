"""Read a trained model."""

from pathlib import Path

from metalad.pipelines.model import Model, stored_model


def load(path: str | Path, *, device: str = "auto") -> Model:
    """Read the model of a run folder, or a model file; both are safetensors, and no code in them is run.

    Args:
        path: a run folder of `train`, or a model file.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Raises:
        ModelFileError: the file is missing, truncated, altered, not metalad's, a pickle, or of a newer format.
        ConfigError: its method is not installed here, or there is no such device.
    """
    return Model(stored_model(path, device))
