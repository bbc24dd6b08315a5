"""Measure how well image sharpness alone separates a labeled data set: a control for the scores of detectors.

python -m benchmarks.sharpness DATA [--seeds 5]

In Head CT the defect-free images and the hemorrhages come from different sources and differ in resolution. Nothing is
trained here: the score of a test image is a simple statistic of its pixels, and its AUROC on the benchmark's random
splits is what a detector could reach without any medical content. Below 0.5, anomalous images have the lower values.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from benchmarks.harness.studies import Finding, write_study
from benchmarks.harness.suite_run import RESULTS
from metalad.data import Sample, read_category
from metalad.data.images import read_image, resize_image
from metalad.results.metrics import auroc

SIZE = (128, 128)
Pixels = UInt8[np.ndarray, "height width 3"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    numbers: dict[Path, dict[str, float]] = {}
    found: dict[str, list[float]] = {name: [] for name in CONTROLS}
    for seed in range(arguments.seeds):
        test = read_category(arguments.data, seed=seed).test
        truth = np.array([sample.abnormal for sample in test])
        for sample in test:
            numbers.setdefault(sample.path, measured(sample))
        for name, areas in found.items():
            areas.append(100 * auroc(np.array([numbers[sample.path][name] for sample in test]), truth))
    findings = [Finding({"score": name, "image AUROC, %": shown(areas)}) for name, areas in found.items()]
    for finding in findings:
        print(*finding.values.values(), sep="  ")
    print(write_study(arguments.out, "sharpness", findings))


def measured(sample: Sample) -> dict[str, float]:
    image = read_image(sample.path)
    return {name: control(image) for name, control in CONTROLS.items()}


def shown(areas: list[float]) -> str:
    return f"{statistics.mean(areas):.2f} ± {statistics.stdev(areas):.2f}"


def sharpness(image: Pixels) -> float:
    """Return the mean absolute Laplacian of the grey image, over its mean brightness."""
    grey = image.mean(2)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(np.abs(laplacian).mean() / (grey.mean() + 1))


CONTROLS: Mapping[str, Callable[[Pixels], float]] = {
    "sharpness at the original size": sharpness,
    "sharpness at 128×128, the input size of the model": lambda image: sharpness(resize_image(image, SIZE)),
    "shorter side in pixels": lambda image: float(min(image.shape[:2])),
    "mean brightness at 128×128": lambda image: float(resize_image(image, SIZE).mean()),
    "fraction of nearly black pixels": lambda image: float((image.mean(2) < 16).mean()),
}


if __name__ == "__main__":
    main()
