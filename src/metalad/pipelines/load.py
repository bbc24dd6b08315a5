"""Read a trained model."""

from pathlib import Path

from metalad.pipelines.model import Model
from metalad.storage.opening import open_model


def load(path: str | Path, *, device: str = "auto") -> Model:
    """Read the model of a run folder, a model file, or a file that `metalad export` wrote; no code in them is run.

    Args:
        path: a run folder of `train`, a model file, or an exported one (.onnx or .xml), which needs no torch.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one; an exported file runs on the CPU.

    Raises:
        ModelFileError: the file is missing, truncated, altered, not metalad's, a pickle, or of a newer format.
        ConfigError: its method, or what runs the exported file, is not installed here, or there is no such device.
    """
    return Model(open_model(Path(path), device))
