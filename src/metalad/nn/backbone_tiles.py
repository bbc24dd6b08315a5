"""Feature maps of large images in bounded memory: the network's layers are computed in overlapping tiles.

The margin of a tile is the exact reach of the layers, and only the border of the image is padded. The joined maps are
therefore those of the whole image, up to the order in which numbers are added.

The first layers, up to stride 4, are computed together, from a tile of the image: their maps are larger than the image,
and each thread holds those of one tile. The later layers are computed step by step, which repeats the fewest positions,
and in tiles only where their input is still large.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from metalad.nn.network import Network, Step, Tap, Window
from metalad.nn.parallel import each_part
from metalad.nn.parts import empty_like

WHOLE = 2**17
"""Pixels of an image that is computed whole. More feature maps do not fit a CPU's cache."""
TILE = 256
"""Side of a tile of the image without its margin, in pixels."""
MAP_TILE = 64
"""Side of a tile of a feature map without its margin, in positions, which have more channels than a pixel."""
JOINED_STRIDE = 4
"""The layers up to this stride are computed together."""


def tiled_features(
    network: Network, images: Float[Tensor, "batch 3 height width"]
) -> Iterator[tuple[Tap, Float[Tensor, "batch _ _ _"]]]:
    """Yield the feature map of each tap of RGB images in [0, 1], as `Network.features` of the normalized images does.

    Images of at most `WHOLE` pixels, and those of a network that is no chain of layers, are computed whole.
    """
    steps = network.chain()
    if not steps or math.prod(images.shape[-2:]) <= WHOLE:
        yield from network.features(network.normalised(images))
        return
    first, *others = _groups(steps)
    # The tiles are normalized, not the image: the standardized image would need as much memory as the tiles.
    maps = _in_tiles(lambda tile: first.compute(network.normalised(tile)), first.windows, images, TILE)
    if first.tap is not None:
        yield first.tap, maps
    for group in others:
        is_large = math.prod(maps.shape[-2:]) > MAP_TILE**2
        maps = _in_tiles(group.compute, group.windows, maps, MAP_TILE) if is_large else group.compute(maps)
        if group.tap is not None:
            yield group.tap, maps


def reach(windows: Sequence[Window]) -> int:
    """Return how far beyond its own block of the input an output position depends on it, on each side.

    The block has as many positions as the stride of all layers. Valid for any padding between that of a kernel that is
    centered on the first position of its block and that of a kernel centered on the block (TensorFlow's "SAME").
    """
    total, stride = 0, 1
    for window in windows:
        total += stride * (window.kernel // 2)
        stride *= window.stride
    return total


class _Group(NamedTuple):
    """Steps that are computed together; only the last one may end in a tap."""

    steps: list[Step]

    @property
    def windows(self) -> tuple[Window, ...]:
        return tuple(window for step in self.steps for window in step.windows)

    @property
    def tap(self) -> Tap | None:
        end = self.steps[-1].end
        return None if end == "stem" else end

    def compute(self, maps: Tensor) -> Tensor:
        for step in self.steps:
            maps = step.compute(maps)
        return maps


def _groups(steps: Sequence[Step]) -> list[_Group]:
    """Join the steps that begin at a stride below `JOINED_STRIDE`, and a step of single positions to the one before."""
    groups: list[_Group] = []
    stride = 1
    for step in steps:
        joins = groups and groups[-1].tap is None and (stride < JOINED_STRIDE or not step.windows)
        if joins:
            groups[-1].steps.append(step)
        else:
            groups.append(_Group([step]))
        stride *= _stride(step.windows)
    return groups


class _Span(NamedTuple):
    """One tile along a side.

    start, stop: of the tile with its margins, in positions of the input. kept: the part of its output without margins.
    target: the place of this part in the joined output. Both may end beyond the last tile's output.
    """

    start: int
    stop: int
    kept: slice
    target: slice


def _spans(length: int, side: int, windows: Sequence[Window]) -> list[_Span]:
    """Divide a side into tiles of nearly equal size.

    Each tile starts at a multiple of the stride, and its length has the same remainder as that of the whole: then each
    layer pads it at its start as it pads the whole, even where the padding depends on the size.
    """
    stride = _stride(windows)
    margin = math.ceil(reach(windows) / stride) * stride
    core = math.ceil(length / math.ceil(length / side) / stride) * stride
    spans = []
    for first in range(0, length, core):
        start, wanted = max(0, first - margin), first + core + margin
        stop = length - max(0, length - wanted) // stride * stride
        kept, target = (first - start) // stride, first // stride
        spans.append(_Span(start, stop, slice(kept, kept + core // stride), slice(target, target + core // stride)))
    return spans


def _in_tiles(
    compute: Callable[[Tensor], Tensor], windows: Sequence[Window], maps: Tensor, side: int
) -> Float[Tensor, "batch _ _ _"]:
    """Return what `compute` returns for the whole maps, computed in tiles."""
    height, width = maps.shape[-2:]
    stride = _stride(windows)
    rows, columns = _spans(height, side, windows), _spans(width, side, windows)
    tiles = list(itertools.product(rows, columns))

    def computed(tile: tuple[_Span, _Span]) -> Tensor:
        row, column = tile
        return compute(maps[..., row.start : row.stop, column.start : column.stop])

    joined = None
    for (row, column), part in zip(tiles, each_part(computed, tiles), strict=True):
        if joined is None:  # the first tile, which is shorter than the whole by multiples of the stride
            more = (height - row.stop) // stride, (width - column.stop) // stride
            joined = empty_like(part, (*part.shape[:2], part.shape[-2] + more[0], part.shape[-1] + more[1]))
        joined[..., row.target, column.target] = part[..., row.kept, column.kept]
    assert joined is not None
    return joined


def _stride(windows: Sequence[Window]) -> int:
    return math.prod(window.stride for window in windows)
