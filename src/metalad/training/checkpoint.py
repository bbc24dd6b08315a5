"""Helpers to read a training checkpoint."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from metalad.runtime.errors import RunError


def stored_stage(checkpoint: Path) -> str | None:
    """Return the training stage in which a checkpoint was written; None if there is no checkpoint.

    Raises:
        RunError: the checkpoint is damaged.
    """
    if not checkpoint.exists():
        return None
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return str(json.loads(file.metadata()["progress"])["stage"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(checkpoint, error) from error


def damaged(checkpoint: Path, error: Exception) -> RunError:
    """Return the error for a checkpoint that cannot be read."""
    return RunError(f"{checkpoint} is damaged ({error}); delete it to train from the start")


def select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, under their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
