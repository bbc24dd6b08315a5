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
from jaxtyping import Float32
from scoring import masks
from tqdm import tqdm

from metalad.benchmark.run import RESULTS, known_rows
from metalad.benchmark.studies import Finding, write_study
from metalad.benchmark.suites import FEATURES, suite_named
from metalad.data import Images, load_images, read_category, split_validation
from metalad.detector import FittedDetector, to_batch
from metalad.methods.metal_features import MetalFeaturesConfig
from metalad.methods.padim import Padim, PadimConfig
from metalad.methods.patchcore import PatchCore, PatchCoreConfig
from metalad.metrics import PixelMetrics, auroc
from metalad.train import VALIDATION_FRACTION

OURS = MetalFeaturesConfig()
BATCH_SIZE = 8
Maps = Float32[np.ndarray, "images height width"]


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
    learnt, held_out = (
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
        detector.fit(learnt.pixels, seed)
        detector.eval()
        usual = maps(detector, held_out, name)
        scores[name] = (maps(detector, judged, name) - usual.mean()) / usual.std()
    scores["sum"] = np.sum(list(scores.values()), 0)
    found = {name: measured(found, judged) for name, found in scores.items()} | {
        "metal_features": ours(folder, results)
    }
    print(folder.name, *(f"{name} {area:.4f} / {image:.3f}" for name, (area, image) in found.items()), flush=True)
    return found


def maps(detector: FittedDetector, images: Images, name: str) -> Maps:
    parts = []
    for start in tqdm(range(0, len(images), BATCH_SIZE), name, leave=False):
        with torch.inference_mode():
            evidence = detector.evidence(to_batch(images.pixels[start : start + BATCH_SIZE]))
            parts.append(detector.judge(evidence, "raw").anomaly_map.numpy())
    return np.concatenate(parts)


def measured(scores: Maps, images: Images) -> tuple[float, float]:
    pixels, truth = PixelMetrics(), np.array([sample.abnormal for sample in images.samples])
    for score, mask in zip(scores, masks(images, scores.shape[1:]), strict=True):
        pixels.add(score, mask)
    return pixels.auroc_up_to(0.3), auroc(scores.max((1, 2)), truth)


def ours(folder: Path, results: Path) -> tuple[float, float]:
    suite = suite_named("default")
    wanted = {
        cell.key
        for cell in suite.cells()
        if cell.category == folder.name and cell.configuration.method == FEATURES.method
    }
    found = [row.metrics["raw"]["model"] for key, row in known_rows(results, suite).items() if key in wanted]
    return statistics.mean(row["pixel_auroc_fpr30"] for row in found), statistics.mean(
        row["image_auroc"] for row in found
    )


if __name__ == "__main__":
    main()
