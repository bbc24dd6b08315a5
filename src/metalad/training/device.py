"""Where tensors live: the CPU, or a GPU where there is one."""

import os

import torch

from metalad.runtime.errors import ConfigError
from metalad.runtime.tasks import WORKER, by_torchrun


def choose_device(wanted: str) -> torch.device:
    """Return the device of a name; `auto` is a GPU where there is one, else the CPU.

    A GPU that is not named by its number is the first one; in one of several processes (of `metalad.runtime.tasks`, or of
    `torchrun`) it is that process's share of them.

    Raises:
        ConfigError: no such device, or no GPU although one was asked for.
    """
    # Convolutions in TF32, the default on GPUs that have it, keep three digits: too few to agree with a CPU.
    torch.backends.cudnn.allow_tf32 = False
    if wanted == "auto":
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted.partition(":")[0] != "cuda":
        raise ConfigError(f"there is no device {wanted!r}; take cpu, cuda or auto")
    if not torch.cuda.is_available():
        raise ConfigError(f"device {wanted} was asked for, but no GPU is usable here; take cpu or auto")
    index = wanted.removeprefix("cuda").removeprefix(":")
    if index and not (index.isdecimal() and int(index) < torch.cuda.device_count()):
        raise ConfigError(f"there is no device {wanted!r}; the GPUs are numbered 0 to {torch.cuda.device_count() - 1}")
    return torch.device(wanted) if index else _own_gpu()


def _own_gpu() -> torch.device:
    place = os.environ.get("LOCAL_RANK" if by_torchrun() else WORKER, "0")
    return torch.device("cuda", int(place) % torch.cuda.device_count())
