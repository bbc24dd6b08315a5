"""Splitting of images into overlapping square tiles, and averaging of tile results to one map."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from metalad.runtime.errors import ConfigError

TILES_AT_ONCE = 64
"""Tiles per forward pass; an image of 512×512 has 196 tiles of 128×128 at a stride of 30."""


def check_tiles(image_size: tuple[int, int], tile: int, stride: int) -> None:
    """Check that tiles fit into the image and leave no gap.

    Raises:
        ConfigError: the tile is smaller than 16 pixels or larger than the image, or the stride is not in [1, tile].
    """
    if not 16 <= tile <= min(image_size):
        height, width = image_size
        raise ConfigError(
            f"tile is {tile}; it must be between 16 pixels and the shorter side of image_size {height}x{width}"
        )
    if not 1 <= stride <= tile:
        raise ConfigError(
            f"stride is {stride}; it must be between 1 and the tile size of {tile} pixels, to leave no gap"
        )


def tile_starts(length: int, tile: int, stride: int) -> tuple[int, ...]:
    """Return the start of each tile along a side: multiples of the stride, and a last tile that ends at the border."""
    return (*range(0, length - tile, stride), length - tile)


def cut(
    images: Float[Tensor, "*batch channels height width"], tile: int, stride: int
) -> Float[Tensor, "tiles *batch channels tile_height tile_width"]:
    """Return the tiles of an image, or of each image of a batch, in reading order."""
    height, width = images.shape[-2:]
    return torch.stack(
        [
            images[..., top : top + tile, left : left + tile]
            for top in tile_starts(height, tile, stride)
            for left in tile_starts(width, tile, stride)
        ]
    )


def assemble(
    tiles: Float[Tensor, "tiles *batch channels tile_height tile_width"], height: int, width: int, stride: int
) -> Float[Tensor, "*batch channels height width"]:
    """Reassemble images from the tiles in the order of `cut`; overlapping tiles are averaged."""
    tile = tiles.shape[-1]
    total, count = tiles.new_zeros(*tiles.shape[1:-2], height, width), tiles.new_zeros(height, width)
    remaining = iter(tiles)
    for top in tile_starts(height, tile, stride):
        for left in tile_starts(width, tile, stride):
            region = (..., slice(top, top + tile), slice(left, left + tile))
            total[region] += next(remaining)
            count[region] += 1
    return total / count


def mean_over_tiles(
    measure: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    tile: int,
    stride: int,
) -> Float[Tensor, "batch measured height width"]:
    """Apply `measure` to each tile of each image, and return the mean over the tiles that contain a pixel.

    measure: function from a batch of tiles to maps of the same size, with any number of channels.
    """
    height, width = images.shape[-2:]
    if torch.compiler.is_compiling():  # the batch size of an exported graph is free
        tiles = cut(images, tile, stride)
        measured = measure(tiles.flatten(0, 1))
        return assemble(measured.reshape(tiles.shape[0], -1, *measured.shape[1:]), height, width, stride)
    maps = []
    for image in images:  # one at a time: the tiles of an image need many times its memory
        tiles = cut(image, tile, stride)
        measured = torch.cat([measure(part) for part in torch.split(tiles, TILES_AT_ONCE)])
        maps.append(assemble(measured, height, width, stride))
    return torch.stack(maps)


def random_tiles(
    images: Float[Tensor, "batch channels height width"], tile: int
) -> Float[Tensor, "batch channels _ _"]:
    """Return one tile of each image, at a random position from torch's global random generator."""
    height, width = images.shape[-2:]
    tops = torch.randint(height - tile + 1, (len(images),)).tolist()
    lefts = torch.randint(width - tile + 1, (len(images),)).tolist()
    return torch.stack(
        [image[:, top : top + tile, left : left + tile] for image, top, left in zip(images, tops, lefts, strict=True)]
    )
