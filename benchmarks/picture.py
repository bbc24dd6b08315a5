"""Draw the results of a model on a category's test images as one picture for the README.

python -m benchmarks.picture RUN DATA OUT.png

One column per image: input, reconstruction if the method has one, the map over the input, ground truth, decision. The
images are chosen by rank, not by hand: the defective images of highest, upper-quartile, median and lowest score, and
the good images of highest and median score.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from metalad.data import Sample, load_images, read_category
from metalad.nn.pixels import to_batch
from metalad.pipelines.rendering import infer_and_render
from metalad.runtime.files import replacing
from metalad.storage.model_file import StoredModel, read_model
from metalad.visualization.sheet import GREEN, INK, QUIET, RED, Caption, SheetCell, sheet

HEADINGS = ("input", "reconstructed\nfrom context", "anomaly map", "ground truth", "decision")
SIDE, GAP, PICTURE_WIDTH = 108, 10, 174
COLORS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    model = read_model(arguments.run)
    images = load_images(read_category(arguments.data).test, model.detector.config.framing, strict=True)
    columns: list[list[SheetCell]] = [[heading(text) for text in HEADINGS]]
    for index in select_images(score(model, images.pixels), images.samples):
        columns.append(column(model, images.samples[index]))
    rows = [row for row in zip(*columns, strict=True) if any(cell is not None for cell in row[1:])]
    whole = Image.fromarray(sheet(rows, (SIDE, *(PICTURE_WIDTH for _ in columns[1:])), GAP))
    with replacing(arguments.out) as temporary:
        small = whole.quantize(COLORS, Image.Quantize.FASTOCTREE)
        small.save(temporary, "PNG", optimize=True)
    print(f"{arguments.out}: {whole.width} x {whole.height} px, {arguments.out.stat().st_size / 1000:.0f} kB")


def score(model: StoredModel, pixels: UInt8[np.ndarray, "images height width 3"]) -> np.ndarray:
    """Return the image scores, computed in batches."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 16):
            batch = to_batch(pixels[start : start + 16])
            parts.append(model.detector(batch).score.numpy())
    return np.concatenate(parts)


def select_images(scores: np.ndarray, samples: tuple[Sample, ...]) -> list[int]:
    """Return the indices of the images to show."""
    order = np.argsort(-scores, kind="stable").tolist()
    defective = [index for index in order if samples[index].abnormal]
    good = [index for index in order if not samples[index].abnormal]
    ranks = (0, len(defective) // 4, len(defective) // 2, len(defective) - 1)
    return [*(defective[rank] for rank in ranks), good[0], good[len(good) // 2]]


def heading(text: str) -> Caption:
    """Return the heading of a row."""
    return Caption(tuple((line, 16, QUIET) for line in text.splitlines()))


def column(model: StoredModel, sample: Sample) -> list[SheetCell]:
    """Return the pictures of one image, the decision, its score, and whether the decision is correct."""
    rendering = infer_and_render(model.detector, sample, model.scoring(None), batch_size=1)
    threshold = model.threshold()
    ratio = rendering.score / threshold
    anomalous = ratio > 1
    wrong = "false alarm" if anomalous else "missed defect"
    decision = Caption((
        ("NG" if anomalous else "OK", 32, RED if anomalous else GREEN),
        (f"{ratio:.2f} x threshold", 16, INK),
        ("correct" if anomalous == sample.abnormal else wrong, 16, QUIET),
    ))  # fmt: skip
    print(f"{sample.name}: {ratio:.2f} x threshold")
    return [rendering.image, rendering.reconstruction, rendering.overlay(threshold), rendering.white_truth, decision]


if __name__ == "__main__":
    main()
