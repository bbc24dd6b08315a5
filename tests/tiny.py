"""A category of a few cookie images, and settings of MeTAL that are small enough to train in a second."""

import shutil
from pathlib import Path

import metalad
from metalad.methods.metal import MetalConfig

COOKIES = Path(metalad.__file__).parent / "data" / "demo_images" / "cookie"
TINY = MetalConfig(image_size=(32, 32), patch_size=8, width=16, hidden_width=32, smoothing_sigma=1.0)
TINY_SETTINGS = ["image_size=32", "patch_size=8", "width=16", "hidden_width=32", "smoothing_sigma=1"]


def tiny_category(root: Path, *, train: int = 12, good: int = 3, defective: int = 3) -> Path:
    """Copy the first cookie images of each kind into a category of the MVTec layout, and return its folder."""
    for source, count in (("train/good", train), ("test/good", good), ("test/anomaly", defective)):
        (root / source).mkdir(parents=True)
        for image in sorted((COOKIES / source).iterdir())[:count]:
            shutil.copy(image, root / source / image.name)
    (root / "ground_truth/anomaly").mkdir(parents=True)
    for image in (root / "test/anomaly").iterdir():
        mask = COOKIES / "ground_truth/anomaly" / f"{image.stem}_mask.png"
        shutil.copy(mask, root / "ground_truth/anomaly" / mask.name)
    return root
