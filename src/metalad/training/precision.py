"""Which number format multiplies matrices fastest here: probed, never assumed.

Of two machines with two cores each, one ran bf16 products 2.2 times as fast as fp32, the other, without bf16
units, at a fifth of the speed. No flag that a processor reports tells as much as a tenth of a second of trying.
"""

import time
from functools import cache
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
WantedPrecision = Precision | Literal["auto"]
SIZE = 1024
WORTHWHILE = 1.3
"""bf16 also costs conversions and digits; it must be at least this much faster."""


def product_rate(dtype: torch.dtype, device: str = "cpu", size: int | None = None, repeats: int = 4) -> float:
    """Return the measured rate of square matrix products, in floating-point operations a second."""
    # A GPU is done with small ones before Python has asked for the next.
    size = size or (SIZE if device == "cpu" else 4 * SIZE)
    left, right = (torch.randn(size, size).to(device, dtype) for _ in range(2))  # the CPU's chance is put back below
    torch.mm(left, right)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


@cache
def fastest_precision(device: str = "cpu") -> Precision:
    """Return "bf16" where its matrix products are well faster than fp32's, else "fp32"."""
    state = torch.random.get_rng_state()
    fast = product_rate(torch.bfloat16, device) > WORTHWHILE * product_rate(torch.float32, device)
    torch.random.set_rng_state(state)
    return "bf16" if fast else "fp32"
