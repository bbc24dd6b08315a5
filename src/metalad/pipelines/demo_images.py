"""Where the photographs that ship with the package are."""

from pathlib import Path

from metalad.pipelines.demo import DATA


def demo_images() -> Path:
    """Return the folder of the cookie photographs, in the layout of MVTec AD, with 31 good ones to train on.

    `LICENSE.txt` there names their authors and their license, CC BY-SA 4.0.
    """
    return DATA
