"""Compare `metal_features` with the sum of its two components: nearest neighbor and positional Gaussian.

python -m benchmarks.score_sum CATEGORY... [--seed 0]

PatchCore and PaDiM use the same network, strides, image size and smoothing as `metal_features`, PaDiM with all
channels. Each anomaly map is standardized by its mean and standard deviation on held-out good images, and the two are
added. The numbers of `metal_features` are those of its recorded rows.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.studies import Finding, write_study
from benchmarks.harness.suite_run import RESULTS, known_rows
from benchmarks.harness.suites import FEATURES, suite_named
from benchmarks.scoring import maps, measured
from metalad.data import load_images, read_category, split_validation
from metalad.detectors.base import FittedDetector
from metalad.methods.metal_features import MetalFeaturesConfig
from metalad.methods.padim import Padim, PadimConfig
from metalad.methods.patchcore import PatchCore, PatchCoreConfig
from metalad.pipelines.train import VALIDATION_FRACTION

FEATURES_CONFIG = MetalFeaturesConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", metavar="CATEGORY", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pairs = {folder.name: compared(folder, arguments.seed, arguments.out) for folder in arguments.categories}
    names = next(iter(pairs.values()))
    mean = {name: statistics.mean(found[name][0] for found in pairs.values()) for name in names}
    findings = [
        Finding({"category": category, **{name: f"{area:.4f} / {image:.3f}" for name, (area, image) in found.items()}})
        for category, found in pairs.items()
    ]
    findings.append(Finding({"category": "mean", **{name: f"{value:.4f}" for name, value in mean.items()}}))
    print(write_study(arguments.out, "score-sum", findings))


def compared(folder: Path, seed: int, results: Path) -> Mapping[str, tuple[float, float]]:
    """Return (pixel AUROC to 0.3, image AUROC) of both methods, their sum, and `metal_features`."""
    category = read_category(folder, seed=seed)
    fitted, held_out = (
        load_images(samples, FEATURES_CONFIG.image_size, strict=True)
        for samples in split_validation(category.train, VALIDATION_FRACTION, seed)
    )
    test_images = load_images(category.test, FEATURES_CONFIG.image_size, strict=True)
    same = {"image_size": FEATURES_CONFIG.image_size, "smoothing_sigma": FEATURES_CONFIG.smoothing_sigma}
    detectors: Mapping[str, FittedDetector] = {
        "patchcore": PatchCore(PatchCoreConfig(**same)),  # type: ignore[arg-type]
        "padim": Padim(PadimConfig(**same, channels=176)),  # type: ignore[arg-type]
    }
    scores = {}
    for name, detector in detectors.items():
        torch.manual_seed(seed)
        detector.fit(fitted.pixels, seed)
        detector.eval()
        reference = maps(detector, held_out, "raw")
        scores[name] = (maps(detector, test_images, "raw") - reference.mean()) / reference.std()
    scores["sum"] = np.sum(list(scores.values()), 0)
    metrics = {name: measured(smooth, test_images, 0.0) for name, smooth in scores.items()}
    pairs = {name: (each["to 0.3"], each["image, max"]) for name, each in metrics.items()}
    pairs["metal_features"] = recorded(folder, results)
    print(folder.name, *(f"{name} {area:.4f} / {image:.3f}" for name, (area, image) in pairs.items()), flush=True)
    return pairs


def recorded(folder: Path, results: Path) -> tuple[float, float]:
    suite = suite_named("default")
    wanted = {
        cell.key
        for cell in suite.cells()
        if cell.category == folder.name and cell.configuration.method == FEATURES.method
    }
    found = [row.metrics["raw"]["model"] for key, row in known_rows(results, suite).items() if key in wanted]
    pixel, image = (statistics.mean(row[metric] for row in found) for metric in ("pixel_auroc_fpr30", "image_auroc"))
    return pixel, image


if __name__ == "__main__":
    main()
