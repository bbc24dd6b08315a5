"""Small videos."""

from pathlib import Path

import cv2
import numpy as np

COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def write_video(path: Path, *, frames: int, colors: bool = False, bright: int | None = None) -> Path:
    """Write frames of one gray level each, 20 times the number of the frame, or of one color each.

    bright: the number of a frame that gets a white square.
    """
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (48, 64))
    assert writer.isOpened()
    for number in range(1, frames + 1):
        pixels = np.full((64, 48, 3), COLORS[(number - 1) % 3][::-1] if colors else 20 * number, np.uint8)
        if number == bright:
            pixels[16:48, 16:32] = 255
        writer.write(pixels)
    writer.release()
    return path
