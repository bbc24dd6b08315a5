"""Draw what a model makes of a category's test images, as one picture for the README.

python benchmarks/picture.py RUN DATA OUT.png

A row an image: input, reconstruction, the map over the input, ground truth, verdict. The rows are chosen by rank and
not by hand: the defective images of highest, middle and lowest score, and the good image of middle score.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from metalad.data import Sample, load_images, read_category
from metalad.detector import to_batch
from metalad.drawing.maps import verdict_overlay
from metalad.files import replacing
from metalad.images import read_image, read_mask, resize_image, resize_map
from metalad.model_file import Model, read_model

HEADINGS = ("input", "rebuilt from context", "anomaly map", "ground truth", "verdict")
LEFT, GAP, HEADING, TEXT = 20, 16, 46, 250
PICTURE_WIDTH = 216
INK, QUIET, RED, GREEN = "#1d242c", "#5c6773", "#a3261b", "#17694a"
COLOURS = 224

Pixels = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Row:
    """One image's pictures, and how its score compares with the threshold."""

    pictures: tuple[Pixels, ...]
    times_threshold: float
    abnormal: bool
    truth: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    model = read_model(arguments.run)
    images = load_images(read_category(arguments.data).test, model.detector.config.image_size, strict=True)
    scores = score(model, images.pixels)
    rows = []
    for index in chosen(scores, images.samples):
        sample = images.samples[index]
        rows.append(row(model, sample, images.pixels[index]))
        print(f"{sample.name}: {rows[-1].times_threshold:.2f} x threshold")
    sheet = compose(rows)
    with replacing(arguments.out) as temporary:
        small = sheet.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
        small.save(temporary, "PNG", optimize=True)
    print(f"{arguments.out}: {sheet.width} x {sheet.height} px, {arguments.out.stat().st_size / 1000:.0f} kB")


def score(model: Model, pixels: UInt8[np.ndarray, "images height width 3"]) -> np.ndarray:
    """Return the image scores, computed a few images at a time."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 16):
            batch = to_batch(pixels[start : start + 16])
            parts.append(model.detector(batch).score.numpy())
    return np.concatenate(parts)


def chosen(scores: np.ndarray, samples: tuple[Sample, ...]) -> list[int]:
    """Return the places of the images to show."""
    order = np.argsort(-scores, kind="stable").tolist()
    defective = [index for index in order if samples[index].abnormal]
    good = [index for index in order if not samples[index].abnormal]
    return [defective[0], defective[len(defective) // 2], defective[-1], good[len(good) // 2]]


def row(model: Model, sample: Sample, pixels: Pixels) -> Row:
    """Judge one image and draw its pictures, all of its own size."""
    image = read_image(sample.path)
    size = image.shape[:2]
    with torch.inference_mode():
        evidence = model.detector.evidence(to_batch(pixels[None]))
        prediction = model.detector.judge(evidence, model.scoring(None))
    if evidence.expected is None:
        raise SystemExit(f"{model.header.method} rebuilds nothing: there is no reconstruction to show")
    rebuilt = np.ascontiguousarray((255 * evidence.expected[0]).round().byte().permute(1, 2, 0).numpy())
    threshold = model.threshold()
    truth = np.zeros(size, dtype=bool) if sample.mask is None else read_mask(sample.mask, size)
    overlay = verdict_overlay(image, resize_map(prediction.anomaly_map[0].numpy(), size), threshold)
    drawn = (image, resize_image(rebuilt, size), overlay, np.repeat(np.uint8(255) * truth[..., None], 3, axis=2))
    times = float(prediction.score[0]) / threshold
    return Row(drawn, times, times > 1, sample.abnormal)


def compose(rows: list[Row]) -> Image.Image:
    """Put the rows under their headings."""
    height = max(round(PICTURE_WIDTH * one.pictures[0].shape[0] / one.pictures[0].shape[1]) for one in rows)
    columns = [LEFT + index * (PICTURE_WIDTH + GAP) for index in range(len(HEADINGS))]
    sheet = Image.new("RGB", (columns[-1] + TEXT, HEADING + len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for left, heading in zip(columns, HEADINGS, strict=True):
        draw.text((left, 14), heading, QUIET, font(17))
    for place, one in enumerate(rows):
        top = HEADING + place * (height + GAP)
        for left, picture in zip(columns, one.pictures, strict=False):
            shown = Image.fromarray(picture)
            shown.thumbnail((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (left, top))
        write_verdict(draw, columns[-1] + GAP, top + height // 2, one)
    return sheet


def write_verdict(draw: ImageDraw.ImageDraw, left: int, middle: int, one: Row) -> None:
    """Write OK or NG, the score, and whether that is right."""
    draw.text((left, middle - 50), "NG" if one.abnormal else "OK", RED if one.abnormal else GREEN, font(42))
    draw.text((left, middle + 6), f"{one.times_threshold:.2f} × threshold", INK, font(18))
    wrong = "false alarm" if one.abnormal else "missed defect"
    draw.text((left, middle + 32), "right" if one.abnormal == one.truth else wrong, QUIET, font(18))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that ships with Pillow."""
    return ImageFont.load_default(size)


if __name__ == "__main__":
    main()
