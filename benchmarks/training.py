"""Time a training step, and compare with the time of its matrix products alone at this machine's rate.

python -m benchmarks.training [--method metal] [--batch-size 64] [--steps 10]
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from metalad.detectors.base import GradientDetector
from metalad.methods import method_named
from metalad.nn.pixels import to_batch
from metalad.training.loop import Descent, Training
from metalad.training.precision import Precision, fastest_precision, product_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="metal")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    method = method_named(arguments.method)
    detector = method.load()(method.load_config()())
    if not isinstance(detector, GradientDetector):
        raise SystemExit(f"{method.name} has no training steps to time: it is fitted in closed form")
    pixels = np.random.default_rng(0).integers(0, 256, (arguments.batch_size, *detector.config.image_size, 3), np.uint8)
    operations = count_operations(detector, pixels)
    print(f"{method.name}: {operations / 1e9:.1f} GFLOP a step of {arguments.batch_size} images, {threads()}")
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        report(detector, pixels, precision, operations, arguments.steps)
    print(f"metalad trains with {fastest_precision()} on this machine")


def threads() -> str:
    """Return the number of threads as text."""
    return f"{torch.get_num_threads()} threads"


def count_operations(detector: GradientDetector, pixels: np.ndarray) -> int:
    """Count the floating-point operations of the model's matrix products, forward and backward, without the loss."""
    batch = to_batch(pixels)
    with FlopCounterMode(display=False) as counter:
        detector.residuals(batch).values.square().mean().backward()  # type: ignore[no-untyped-call]
    detector.zero_grad()
    return int(counter.get_total_flops())


def report(detector: GradientDetector, pixels: np.ndarray, precision: Precision, operations: int, steps: int) -> None:
    """Print the step time of one precision, the time of its matrix products, and their ratio."""
    descent = Descent(detector, Training(batch_size=len(pixels)), seed=0, precision=precision, folder=Path())
    for _ in range(2):
        descent.step(pixels, 1e-4)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        descent.step(pixels, 1e-4)
        seconds.append(time.perf_counter() - start)
    rate = product_rate(torch.bfloat16 if precision == "bf16" else torch.float32, size=2048)
    step, ideal = statistics.median(seconds), operations / rate
    print(
        f"{precision}: step {1e3 * step:.0f} ms; its products alone {1e3 * ideal:.0f} ms at {rate / 1e9:.0f} GFLOP/s; "
        f"{ideal / step:.0%} of the machine's rate"
    )


if __name__ == "__main__":
    main()
