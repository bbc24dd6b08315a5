"""What is read of a checkpoint of gradient descent before, and while, it is gone on from."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from metalad.runtime.errors import RunError


def stored_stage(checkpoint: Path) -> str | None:
    """Return the stage that a checkpoint was written in, None if there is no checkpoint.

    Raises:
        RunError: it is damaged.
    """
    if not checkpoint.exists():
        return None
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return str(json.loads(file.metadata()["progress"])["stage"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(checkpoint, error) from error


def damaged(checkpoint: Path, error: Exception) -> RunError:
    """Return what is raised for a checkpoint that cannot be read."""
    return RunError(f"{checkpoint} is damaged ({error}); delete it to train from the start")


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
