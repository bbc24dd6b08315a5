"""Measure how smoothing and the image score affect the metrics of a trained model; nothing is trained.

python -m benchmarks.scoring RUN DATA [--scoring raw]

The paper gives neither the width of its Gaussian filter nor how an anomaly map becomes an image score. Each line has
the pixel metrics for one width at the model's resolution, and the image AUROC of each image score.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness.studies import Finding, write_study
from benchmarks.harness.suite_run import RESULTS
from metalad.data import Images, load_images, read_category
from metalad.data.images import read_mask, resize_mask
from metalad.detectors.base import SCORINGS, TOP_FRACTION, Detector, Scoring
from metalad.nn.pixels import to_batch
from metalad.nn.smoothing import Smoothing
from metalad.results.metrics import PixelMetrics, auroc
from metalad.storage.model_file import read_model

SIGMAS = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0)
BATCH_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scoring", choices=SCORINGS, nargs="+", default=["raw"])
    parser.add_argument("--name", default="scoring")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model = read_model(arguments.run)
    category = read_category(arguments.data, seed=model.header.seed)
    images = load_images(category.test, model.detector.config.framing, strict=True)
    findings = []
    for scoring in arguments.scoring:
        rough = unsmoothed(model.detector, images, scoring)
        for sigma in SIGMAS:
            findings.append(Finding({"score": scoring, "σ": f"{sigma:g}", **measured(rough, images, sigma)}))
            print(*findings[-1].values.values(), sep="  ")
    print(write_study(arguments.out, arguments.name, findings))


def unsmoothed(detector: Detector, images: Images, scoring: Scoring) -> Float32[np.ndarray, "images height width"]:
    height, width = detector.config.image_size
    detector.smoothing, detector.guided_smoothing = Smoothing(height, width, 0.0), None
    return maps(detector, images, scoring)


def maps(detector: Detector, images: Images, scoring: Scoring) -> Float32[np.ndarray, "images height width"]:
    parts = []
    for start in tqdm(range(0, len(images), BATCH_SIZE), type(detector).__name__, leave=False):
        with torch.inference_mode():
            batch = to_batch(images.pixels[start : start + BATCH_SIZE])
            parts.append(detector.predict(batch, detector.residuals(batch), scoring).anomaly_map.numpy())
    return np.concatenate(parts)


def measured(rough: Float32[np.ndarray, "images height width"], images: Images, sigma: float) -> dict[str, float]:
    height, width = rough.shape[1:]
    smoothing = Smoothing(height, width, sigma)
    pixels, smooth = PixelMetrics(), smoothing(torch.from_numpy(rough))
    truth = np.array([sample.abnormal for sample in images.samples])
    for index, mask in enumerate(masks(images, (height, width))):
        pixels.add(smooth[index].numpy(), mask)
    return {
        "to 0.3": pixels.auroc_up_to(0.3),
        "full": pixels.auroc(),
        **{f"image, {name}": auroc(score.numpy(), truth) for name, score in image_scores(smooth.flatten(1)).items()},
    }


def masks(images: Images, size: tuple[int, int]) -> Iterator[np.ndarray]:
    for sample, original in zip(images.samples, images.sizes, strict=True):
        mask = np.zeros(original, bool) if sample.mask is None else read_mask(sample.mask, original)
        yield resize_mask(mask, size)


def image_scores(maps: Tensor) -> dict[str, Tensor]:
    top = max(1, round(TOP_FRACTION * maps.shape[1]))
    return {"max": maps.amax(1), "mean": maps.mean(1), "top 1 %": maps.topk(top, 1).values.mean(1)}


if __name__ == "__main__":
    main()
