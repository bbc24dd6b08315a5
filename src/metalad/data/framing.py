"""How images of any size become arrays of one size, and how maps return to the images' own size.

Images of similar shapes are resized to the model's height and width. Images of many shapes get one scale instead: each
is placed in the middle of the array, which continues it by reflection. A reflected border has no edge of its own and
nothing that is not in the image; the map there is cut off.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from metalad.data.images import resize_image, resize_map, resize_mask


@dataclass(frozen=True)
class Framing:
    """The size of a model's images, and how an image of another size is placed in it.

    size: height and width of the model's images, in pixels. scale: pixels of the model per pixel of an image, the same
    for all images; one that does not fit is reduced further. 0: an image is resized to `size`, whatever its shape.
    """

    size: tuple[int, int]
    scale: float = 0.0

    def inside(self, own: tuple[int, int]) -> tuple[slice, slice]:
        """Return rows and columns of the model's image that an image of the size `own` (height, width) covers."""
        if not self.scale:
            return slice(0, self.size[0]), slice(0, self.size[1])
        scale = min(self.scale, *(side / length for side, length in zip(self.size, own, strict=True)))
        rows, columns = (
            _centered(min(side, max(1, round(length * scale))), side)
            for side, length in zip(self.size, own, strict=True)
        )
        return rows, columns

    def place(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "new_height new_width 3"]:
        """Return an image at the model's size; see `inside` for the pixels that show it."""
        if not self.scale:
            return resize_image(image, self.size)
        inside = self.inside(image.shape[:2])
        resized = resize_image(image, _size_of(inside))
        margins = [(part.start, side - part.stop) for part, side in zip(inside, self.size, strict=True)]
        return np.pad(resized, (*margins, (0, 0)), mode="symmetric")

    def place_mask(self, mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "new_height new_width"]:
        """Return the mask of an image at the model's size; what continues the image is not anomalous."""
        inside = self.inside((mask.shape[0], mask.shape[1]))
        placed = np.zeros(self.size, dtype=bool)
        placed[inside] = resize_mask(mask, _size_of(inside))
        return placed

    def cut(
        self, anomaly_map: Float32[np.ndarray, "height width"], own: tuple[int, int]
    ) -> Float32[np.ndarray, "new_height new_width"]:
        """Return the part of a map at the model's resolution that shows an image of the size `own`."""
        return anomaly_map[self.inside(own)]

    def at_own_size(
        self, anomaly_map: Float32[np.ndarray, "height width"], own: tuple[int, int]
    ) -> Float32[np.ndarray, "new_height new_width"]:
        """Return a map at the model's resolution at the size of the image, `own`."""
        return resize_map(self.cut(anomaly_map, own), own)

    def picture_at_own_size(
        self, picture: UInt8[np.ndarray, "height width 3"], own: tuple[int, int]
    ) -> UInt8[np.ndarray, "new_height new_width 3"]:
        """Return a picture of the model, such as a reconstruction at a lower resolution, at the image's size, `own`."""
        part = tuple(
            slice(math.floor(each.start * length / side), math.ceil(each.stop * length / side))
            for each, length, side in zip(self.inside(own), picture.shape, self.size, strict=False)
        )
        return resize_image(picture[part], own)


def _centered(length: int, side: int) -> slice:
    start = (side - length) // 2
    return slice(start, start + length)


def _size_of(part: tuple[slice, slice]) -> tuple[int, int]:
    rows, columns = part
    return rows.stop - rows.start, columns.stop - columns.start
