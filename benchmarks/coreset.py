"""Time the selection of a coreset against plain greedy selection, which updates all distances for each center.

python -m benchmarks.coreset [--points 30000] [--channels 64] [--count 5000]
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from metalad.detectors.density.coreset import coreset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=30_000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--count", type=int, default=5_000)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    # Like features: many directions of small variance, few of a large one.
    spread = torch.linspace(1, 0.05, options.channels)
    points = spread * torch.randn(options.points, options.channels, generator=generator)
    plain, plain_seconds = timed(lambda: plain_greedy(points, options.count))
    selected, seconds = timed(lambda: coreset(points, options.count, 0))
    same = float((plain == selected).float().mean())
    print(f"plain greedy {plain_seconds:.2f} s, coreset {seconds:.2f} s, ratio {plain_seconds / seconds:.1f}")
    print(f"equal centers: {100 * same:.1f} %")


def plain_greedy(points: Tensor, count: int) -> Tensor:
    """Select one center at a time by expanded squares."""
    chosen = [int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(0)))]
    squares = points.square().sum(1)
    distance = torch.full((len(points),), torch.inf)
    for _ in range(count - 1):
        newest = chosen[-1]
        distance = torch.minimum(distance, torch.addmv(squares, points, points[newest], alpha=-2) + squares[newest])
        distance[newest] = -1
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


def timed(compute: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.process_time()
    return compute(), time.process_time() - start


if __name__ == "__main__":
    main()
