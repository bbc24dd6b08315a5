"""Set MeTAL on features beside the sum it has to beat: nearest neighbour and a normal law at each place.

python benchmarks/partners.py CATEGORY... [--seed 0]

PatchCore and PaDiM, of the same network, strides, size and filter as `metal_features`, PaDiM with all channels; each
map is counted from its mean on held-out good images in units of its deviation there, and the two are added. The figures
of `metal_features` are those of its committed rows.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scoring import maps, measured

from metalad.data import load_images, read_category, split_validation
from metalad.detectors.base import FittedDetector
from metalad.methods.metal_features import MetalFeaturesConfig
from metalad.methods.padim import Padim, PadimConfig
from metalad.methods.patchcore import PatchCore, PatchCoreConfig
from metalad.pipelines.benchmark.run import RESULTS, known_rows
from metalad.pipelines.benchmark.studies import Finding, write_study
from metalad.pipelines.benchmark.suites import FEATURES, suite_named
from metalad.pipelines.train import VALIDATION_FRACTION

OURS = MetalFeaturesConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", metavar="CATEGORY", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    figures = {folder.name: compared(folder, arguments.seed, arguments.out) for folder in arguments.categories}
    names = next(iter(figures.values()))
    mean = {name: statistics.mean(found[name][0] for found in figures.values()) for name in names}
    findings = [
        Finding({"category": category, **{name: f"{area:.4f} / {image:.3f}" for name, (area, image) in found.items()}})
        for category, found in figures.items()
    ]
    findings.append(Finding({"category": "mean", **{name: f"{value:.4f}" for name, value in mean.items()}}))
    print(write_study(arguments.out, "partners", findings))


def compared(folder: Path, seed: int, results: Path) -> Mapping[str, tuple[float, float]]:
    """Return (pixel AUROC to 0.3, image AUROC) of both, their sum, and ours."""
    category = read_category(folder, seed=seed)
    fitted, held_out = (
        load_images(samples, OURS.image_size, strict=True)
        for samples in split_validation(category.train, VALIDATION_FRACTION, seed)
    )
    judged = load_images(category.test, OURS.image_size, strict=True)
    same = {"image_size": OURS.image_size, "smoothing_sigma": OURS.smoothing_sigma}
    detectors: Mapping[str, FittedDetector] = {
        "neighbour": PatchCore(PatchCoreConfig(**same)),  # type: ignore[arg-type]
        "normal law": Padim(PadimConfig(**same, channels=176)),  # type: ignore[arg-type]
    }
    scores = {}
    for name, detector in detectors.items():
        torch.manual_seed(seed)
        detector.fit(fitted.pixels, seed)
        detector.eval()
        usual = maps(detector, held_out, "raw")
        scores[name] = (maps(detector, judged, "raw") - usual.mean()) / usual.std()
    scores["sum"] = np.sum(list(scores.values()), 0)
    figures = {name: measured(smooth, judged, 0.0) for name, smooth in scores.items()}
    found = {name: (figure["to 0.3"], figure["image, max"]) for name, figure in figures.items()}
    found["metal_features"] = ours(folder, results)
    print(folder.name, *(f"{name} {area:.4f} / {image:.3f}" for name, (area, image) in found.items()), flush=True)
    return found


def ours(folder: Path, results: Path) -> tuple[float, float]:
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
