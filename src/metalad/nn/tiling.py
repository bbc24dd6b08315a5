"""Overlapping square tiles of an image: cut out, judged one by one, and averaged back to one map."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from metalad.runtime.errors import ConfigError

TILES_AT_ONCE = 64
"""Tiles given to a network together; an image of 512 pixels has 196 of 128 at a stride of 30."""


def check_tiles(image_size: tuple[int, int], tile: int, stride: int) -> None:
    """See that tiles fit into the image and leave no gap.

    Raises:
        ConfigError: they do not.
    """
    if not 16 <= tile <= min(image_size):
        height, width = image_size
        raise ConfigError(
            f"tile is {tile}; it must be from 16 pixels to the shorter side of image_size {height}x{width}"
        )
    if not 1 <= stride <= tile:
        raise ConfigError(f"stride is {stride}; it must be from 1 to the tile's {tile} pixels, to leave no gap")


def tile_starts(length: int, tile: int, stride: int) -> tuple[int, ...]:
    """Return where tiles begin along a side: at every stride, and one that ends at the far edge."""
    return (*range(0, length - tile, stride), length - tile)


def cut(
    image: Float[Tensor, "channels height width"], tile: int, stride: int
) -> Float[Tensor, "tiles channels tile_height tile_width"]:
    """Return the tiles of an image in reading order."""
    height, width = image.shape[1:]
    return torch.stack(
        [
            image[:, top : top + tile, left : left + tile]
            for top in tile_starts(height, tile, stride)
            for left in tile_starts(width, tile, stride)
        ]
    )


def averaged(
    tiles: Float[Tensor, "tiles channels tile_height tile_width"], height: int, width: int, stride: int
) -> Float[Tensor, "channels height width"]:
    """Lay the tiles that `cut` gives of such an image back to their places; where they overlap, their mean is taken."""
    tile = tiles.shape[-1]
    total, count = tiles.new_zeros(tiles.shape[1], height, width), tiles.new_zeros(height, width)
    left_to_lay = iter(tiles)
    for top in tile_starts(height, tile, stride):
        for left in tile_starts(width, tile, stride):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            total[place] += next(left_to_lay)
            count[place] += 1
    return total / count


def mean_over_tiles(
    measure: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    tile: int,
    stride: int,
) -> Float[Tensor, "batch measured height width"]:
    """Measure each tile of each image by itself, and return the mean of what overlapping tiles say of a pixel.

    measure: from tiles to as many tiles of that size, of any number of channels.
    """
    height, width = images.shape[-2:]
    maps = []
    for image in images:  # one at a time: the tiles of an image are many times its size
        tiles = cut(image, tile, stride)
        measured = torch.cat([measure(part) for part in torch.split(tiles, TILES_AT_ONCE)])
        maps.append(averaged(measured, height, width, stride))
    return torch.stack(maps)


def random_tiles(
    images: Float[Tensor, "batch channels height width"], tile: int
) -> Float[Tensor, "batch channels _ _"]:
    """Return one tile of each image, from a place drawn anew from torch's own chance."""
    height, width = images.shape[-2:]
    tops = torch.randint(height - tile + 1, (len(images),)).tolist()
    lefts = torch.randint(width - tile + 1, (len(images),)).tolist()
    return torch.stack(
        [image[:, top : top + tile, left : left + tile] for image, top, left in zip(images, tops, lefts, strict=True)]
    )
