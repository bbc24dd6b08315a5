"""Choice of the precision of matrix products, by a short measurement on this machine.

Of two machines with two cores each, one computed bf16 products 2.2 times as fast as fp32, the other, without bf16
hardware, at a fifth of the speed of fp32. A measurement of 0.1 s is more reliable than the processor's feature flags.
"""

import time
from functools import cache

import torch

from metalad.runtime.choices import Precision as Precision
from metalad.runtime.choices import WantedPrecision as WantedPrecision

SIZE = 1024
MIN_SPEEDUP = 1.3
"""Minimum speedup for which bf16 is used, because it also costs conversions and accuracy."""
SMALL_SIZE = 256
MIN_SMALL_SPEEDUP = 0.5
"""Minimum speedup of products of `SMALL_SIZE`, below which those of `SIZE` are not measured.

Without bf16 hardware, one bf16 product of `SIZE` took 2.6 s, 50 times as long as in fp32; of `SMALL_SIZE`, 0.03 s.
"""


def product_rate(dtype: torch.dtype, device: str = "cpu", size: int | None = None, repeats: int = 4) -> float:
    """Return the measured rate of square matrix products, in floating-point operations per second."""
    # On a GPU, products of small matrices take less time than their launch from Python.
    size = size or (SIZE if device == "cpu" else 4 * SIZE)
    left, right = (
        torch.randn(size, size).to(device, dtype) for _ in range(2)
    )  # `fastest_precision` restores the random state
    torch.mm(left, right)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


@cache
def fastest_precision(device: str = "cpu") -> Precision:
    """Return "bf16" if its matrix products are at least `MIN_SPEEDUP` times as fast as in fp32, else "fp32"."""
    state = torch.random.get_rng_state()
    faster = (device != "cpu" or _speedup(device, SMALL_SIZE) > MIN_SMALL_SPEEDUP) and _speedup(device) > MIN_SPEEDUP
    torch.random.set_rng_state(state)
    return "bf16" if faster else "fp32"


def _speedup(device: str, size: int | None = None) -> float:
    return product_rate(torch.bfloat16, device, size) / product_rate(torch.float32, device, size)
