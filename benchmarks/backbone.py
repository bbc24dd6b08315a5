"""Time a backbone on a CPU: a few images at a time, norms as layers of their own; and the search for nearest centers.

python -m benchmarks.backbone [--backbone lite0] [--threads N]

Columns: pixels processed at once. Times are relative to the whole batch, the best of five.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from metalad.detectors.density.nearest import _in_one_pass, nearest
from metalad.nn import backbones
from metalad.nn.backbones import Backbone
from metalad.nn.networks import Convolution

BATCHES = ((32, 128), (16, 256), (8, 512))
PIXELS = tuple(2**power for power in range(15, 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backbone = Backbone(arguments.backbone, ("s4", "s8", "s16"))
    for tensor in backbone.state_dict().values():  # constant weights are as fast as trained ones
        torch.nn.init.constant_(tensor, 0.01)
    print("images", *(f"{pixels:>7}" for pixels in PIXELS), "  at once, s", sep="  ")
    for count, side in BATCHES:
        images = torch.rand(count, 3, side, side)
        whole = best_at_once(backbone, images, count * side**2)
        parts = [best_at_once(backbone, images, pixels) for pixels in PIXELS]
        print(f"{count}x{side}²", *(f"{part / whole:7.2f}" for part in parts), f"{whole:12.2f}", sep="  ")
    images = torch.rand(2, 3, 256, 256)
    scaled = best(partial(backbone, images))
    with mock.patch.object(Convolution, "forward", norm_as_a_layer):
        print(f"norms in the convolutions, to norms as layers: {scaled / best(partial(backbone, images)):.2f}")
    points, centers = torch.randn(30_000, 176), torch.randn(1024, 176)
    whole = best(lambda: torch.cdist(points, centers).argmin(1))
    print(f"nearest of 1,024 centers, to cdist: {best(lambda: nearest(points, centers)) / whole:.2f}")
    for count, channels in ((5000, 176), (5000, 98), (20_000, 27)):
        queries, bank = torch.randn(2048, channels), torch.randn(count, channels)
        one_pass = best(partial(_in_one_pass, queries, bank, bank.square().sum(1)))
        ratio = best(partial(nearest, queries, bank)) / one_pass
        print(f"nearest of {count:,} with {channels} channels, two passes to one: {ratio:.2f}")


def norm_as_a_layer(conv: Convolution, maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Convolve, then normalize."""
    normalized: Tensor = norm(conv._conv_forward(maps, conv.weight, None))
    return normalized


def best_at_once(backbone: Backbone, images: Tensor, pixels: int) -> float:
    """Return the shortest time of a batch with this number of pixels at once."""
    default, backbones.PIXELS_AT_ONCE = backbones.PIXELS_AT_ONCE, pixels
    try:
        return best(partial(backbone, images))
    finally:
        backbones.PIXELS_AT_ONCE = default


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest duration of several calls, in seconds."""
    durations = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            durations.append(time.perf_counter() - start)
    return min(durations)


if __name__ == "__main__":
    main()
