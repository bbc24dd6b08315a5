"""Count false alarms on held-out good images, for the requested false-alarm rates.

python -m benchmarks.false_alarms CATEGORY... [--method metal_features] [--folds 4] [--seed 0]

All good images of a category, training and test, are split at random into folds. A model is trained on all folds but
one, sets its thresholds as in any run, and scores the remaining fold. Defects are not used. Where good test images were
taken under other conditions than good training images, this does not predict the rate in production: it measures
whether the thresholds are right for good images of the same distribution, which is all that they claim.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from benchmarks.harness.studies import Finding, write_study
from benchmarks.harness.suite_run import RESULTS
from metalad.data import Sample, load_images, read_category
from metalad.pipelines.train import train
from metalad.storage.model_file import StoredModel

RATES = (0.01, 0.05)
CONFIDENCE = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", metavar="CATEGORY", nargs="+", type=Path)
    parser.add_argument("--method", default="metal_features")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    total, alarms = 0, np.zeros(len(RATES), int)
    findings = []
    for folder in arguments.categories:
        category = read_category(folder)
        good = [sample for sample in (*category.train, *category.test) if not sample.abnormal]
        found = counted(good, arguments.method, arguments.folds, arguments.seed)
        findings.append(finding(category.name, len(good), found))
        print(*findings[-1].values.values(), sep="  ", flush=True)
        total, alarms = total + len(good), alarms + found
    findings.append(finding("all", total, alarms))
    print(*findings[-1].values.values(), sep="  ")
    print(write_study(arguments.out, f"false-alarms-{arguments.method}", findings))


def counted(good: Sequence[Sample], method: str, folds: int, seed: int) -> np.ndarray:
    """Return the number of rejected good images at each rate; each image is scored by a model not trained on it."""
    fold = np.random.default_rng(seed).permutation(len(good)) % folds
    alarms = np.zeros(len(RATES), int)
    for left_out in tqdm(range(folds), method, leave=False):
        fitted = [sample for sample, number in zip(good, fold, strict=True) if number != left_out]
        held_out = [sample for sample, number in zip(good, fold, strict=True) if number == left_out]
        with tempfile.TemporaryDirectory() as temporary:
            linked = Path(temporary, "good")
            linked.mkdir()
            for number, sample in enumerate(fitted):
                (linked / f"{number:05}{sample.path.suffix}").symlink_to(sample.path.absolute())
            model = train(linked, Path(temporary, "run"), method=method, seed=seed)
        scores = score(model.stored, held_out)
        alarms += [int((scores > model.threshold_for(rate)).sum()) for rate in RATES]
    return alarms


def score(model: StoredModel, samples: Sequence[Sample]) -> np.ndarray:
    images = load_images(samples, model.detector.config.framing, strict=True)
    with torch.no_grad():
        residuals = model.detector.residuals_of(images.pixels)
        return model.detector.image_scores(residuals, model.scoring(None)).numpy()


def finding(category: str, images: int, alarms: np.ndarray) -> Finding:
    values: dict[str, str | int | float | None] = {"category": category, "good images": images}
    for rate, count in zip(RATES, alarms, strict=True):
        interval = stats.binomtest(int(count), images).proportion_ci(CONFIDENCE)
        values[f"rejected at {rate:.0%}"] = f"{count} ({count / images:.1%}; {interval.low:.1%} to {interval.high:.1%})"
    return Finding(values)


if __name__ == "__main__":
    main()
