"""Choice of the device: the CPU or a GPU."""

import os

import torch

from metalad.runtime.errors import ConfigError
from metalad.runtime.tasks import WORKER, by_torchrun


def choose_device(wanted: str) -> torch.device:
    """Return the named device; `auto` is a GPU if one is available, else the CPU.

    `cuda` without a number is the first GPU. In one of several processes (of `metalad.runtime.tasks` or `torchrun`)
    it is the GPU with the number of the process, modulo the number of GPUs.

    Raises:
        ConfigError: no such device, or a GPU is requested but none is available.
    """
    # TF32, the default for convolutions, keeps three decimal digits: too few to agree with a CPU.
    torch.backends.cudnn.allow_tf32 = False
    if wanted == "auto":
        return _process_gpu() if torch.cuda.is_available() else torch.device("cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    if not isinstance(wanted, str) or wanted.partition(":")[0] != "cuda":
        raise ConfigError(f"there is no device {wanted!r}; use cpu, cuda or auto")
    if not torch.cuda.is_available():
        raise ConfigError(f"device {wanted} is not available: this machine has no usable GPU; use cpu or auto")
    index = wanted.removeprefix("cuda").removeprefix(":")
    if index and not (index.isdecimal() and int(index) < torch.cuda.device_count()):
        raise ConfigError(f"there is no device {wanted!r}; the GPUs are numbered 0 to {torch.cuda.device_count() - 1}")
    return torch.device(wanted) if index else _process_gpu()


def _process_gpu() -> torch.device:
    number = os.environ.get("LOCAL_RANK" if by_torchrun() else WORKER, "0")
    return torch.device("cuda", int(number) % torch.cuda.device_count())
