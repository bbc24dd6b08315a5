"""Time the streaming pixel metrics on a full-size test set, measure their memory, and compare AUROC with scikit-learn.

python -m benchmarks.metrics [--data CATEGORY] [--images 83] [--side 900] [--no-sklearn]

The maps are smooth and synthetic, and generated again for each pass, so that they are never in memory together;
generating them is not timed. `--data` uses the masks of a category's test images instead of ellipses.
"""

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from metalad.data import read_category
from metalad.data.images import read_mask, resize_map, resize_mask
from metalad.pipelines.benchmark.machine import peak_memory
from metalad.results.metrics import PixelMetrics

Image = tuple[Float32[np.ndarray, "side side"], Bool[np.ndarray, "side side"]]
GOOD = 20
"""Of MVTec AD's 83 bottle test images, 20 are good."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a category folder with ground-truth masks")
    parser.add_argument("--images", type=int, default=83)
    parser.add_argument("--side", type=int, default=900, help="height and width of a map, pixels")
    parser.add_argument("--no-sklearn", action="store_true", help="skip the pass that holds all pixels in memory")
    arguments = parser.parse_args()
    masks = partial(ellipses, arguments.images, arguments.side)
    if arguments.data:
        masks = partial(real_masks, arguments.data, arguments.side)
    pixels = measure_streaming(masks)
    if not arguments.no_sklearn:
        compare(masks, pixels)


def measure_streaming(masks: partial[Iterator[np.ndarray]]) -> PixelMetrics:
    """Add all maps, compute all metrics, and print values, time and the peak memory of the process."""
    pixels, adding, count, total = PixelMetrics(), 0.0, 0, 0
    for anomaly_map, mask in with_maps(masks()):
        start = time.perf_counter()
        pixels.add(anomaly_map, mask)
        adding += time.perf_counter() - start
        count, total = count + 1, total + mask.size
    start = time.perf_counter()
    f1, threshold = pixels.f1_max()
    print(f"AUROC up to FPR 0.3  {pixels.auroc_up_to():.6f}")
    print(f"AUROC                {pixels.auroc():.6f} ± {pixels.error_bound():.1e} at worst")
    print(f"AUPRO up to FPR 0.3  {pixels.aupro():.6f}")
    print(f"average precision    {pixels.average_precision():.6f}")
    print(f"F1 max               {f1:.6f} at {threshold:.6g}")
    finishing = time.perf_counter() - start
    print(
        f"{count} maps, {total / 1e6:.1f} M pixels on {len(os.sched_getaffinity(0))} cores: "
        f"adding {adding:.2f} s, every metric {finishing:.2f} s, peak memory {(peak_memory() or 0) / 2**20:.0f} MiB"
    )
    return pixels


def compare(masks: partial[Iterator[np.ndarray]], pixels: PixelMetrics) -> None:
    """Print scikit-learn's AUROC over the same pixels, its time, and the difference to the streaming AUROC."""
    from sklearn.metrics import roc_auc_score  # imported here, so that it does not count in the peak memory above

    images = list(with_maps(masks()))
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images])
    labels = np.concatenate([mask.ravel() for _, mask in images])
    del images
    start = time.perf_counter()
    exact = float(roc_auc_score(labels, scores))
    seconds = time.perf_counter() - start
    print(
        f"scikit-learn AUROC   {exact:.6f} in {seconds:.2f} s, peak memory {(peak_memory() or 0) / 2**20:.0f} MiB; "
        f"the streaming AUROC differs by {abs(pixels.auroc() - exact):.1e}"
    )


def with_maps(masks: Iterator[np.ndarray]) -> Iterator[Image]:
    """Yield each mask with a smooth positive map that has somewhat higher, blurred values inside the mask."""
    rng = np.random.default_rng(0)
    for mask in masks:
        coarse = max(8, mask.shape[0] // 4)
        noise = resize_map(rng.standard_normal((coarse, coarse), np.float32), mask.shape)
        lift = resize_map(resize_map(mask.astype(np.float32), (coarse, coarse)), mask.shape)
        yield np.exp(noise + np.float32(rng.uniform(0.5, 2)) * lift), mask


def ellipses(images: int, side: int) -> Iterator[np.ndarray]:
    """Yield masks of one to three ellipses, the first `GOOD` of them empty."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    for image in range(images):
        mask = np.zeros((side, side), dtype=bool)
        for _ in range(rng.integers(1, 4) if image >= GOOD else 0):
            (row, column), (height, width) = rng.random(2), rng.uniform(0.01, 0.15, 2)
            mask |= ((y - row) / height) ** 2 + ((x - column) / width) ** 2 <= 1
        yield mask


def real_masks(category: Path, side: int) -> Iterator[np.ndarray]:
    """Yield the masks of a category's test images, stretched to side × side; empty for good images."""
    for sample in read_category(category).test:
        if sample.mask is not None:
            yield resize_mask(read_mask(sample.mask), (side, side))
        elif not sample.abnormal:
            yield np.zeros((side, side), dtype=bool)


if __name__ == "__main__":
    main()
