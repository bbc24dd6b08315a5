"""Where tensors live: the CPU, or a GPU where there is one."""

import torch

from metalad.errors import ConfigError


def choose_device(wanted: str) -> torch.device:
    """Return the device of a name; `auto` is a GPU where there is one, else the CPU.

    Raises:
        ConfigError: no such device, or no GPU although one was asked for.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted.partition(":")[0] != "cuda":
        raise ConfigError(f"there is no device {wanted!r}; take cpu, cuda or auto")
    if not torch.cuda.is_available():
        raise ConfigError(f"device {wanted} was asked for, but no GPU is usable here; take cpu or auto")
    index = wanted.removeprefix("cuda").removeprefix(":")
    if index and not (index.isdecimal() and int(index) < torch.cuda.device_count()):
        raise ConfigError(f"there is no device {wanted!r}; the GPUs are numbered 0 to {torch.cuda.device_count() - 1}")
    return torch.device(wanted)
