"""Draw what a model makes of a category's test images, as one picture for the README.

python benchmarks/picture.py RUN DATA OUT.png

A column an image: input, reconstruction, the map over the input, ground truth, verdict. The images are chosen by rank
and not by hand: of the defective ones those of highest, upper-quartile, middle and lowest score, of the good ones those
of highest and middle score.
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

HEADINGS = ("input", "rebuilt from\nits context", "anomaly map", "ground truth", "verdict")
SIDE, TOP, GAP, VERDICT = 118, 12, 10, 96
PICTURE_WIDTH = 174
INK, QUIET, RED, GREEN = "#1d242c", "#5c6773", "#a3261b", "#17694a"
COLOURS = 256

Pixels = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Column:
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
    columns = []
    for index in chosen(scores, images.samples):
        sample = images.samples[index]
        columns.append(column(model, sample, images.pixels[index]))
        print(f"{sample.name}: {columns[-1].times_threshold:.2f} x threshold")
    sheet = compose(columns)
    with replacing(arguments.out) as temporary:
        small = sheet.quantize(COLOURS, Image.Quantize.FASTOCTREE)
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
    ranks = (0, len(defective) // 4, len(defective) // 2, len(defective) - 1)
    return [*(defective[rank] for rank in ranks), good[0], good[len(good) // 2]]


def column(model: Model, sample: Sample, pixels: Pixels) -> Column:
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
    return Column(drawn, times, times > 1, sample.abnormal)


def compose(columns: list[Column]) -> Image.Image:
    """Put the columns beside their headings."""
    height = max(round(PICTURE_WIDTH * one.pictures[0].shape[0] / one.pictures[0].shape[1]) for one in columns)
    tops = [TOP + place * (height + GAP) for place in range(len(HEADINGS))]
    sheet = Image.new("RGB", (SIDE + len(columns) * (PICTURE_WIDTH + GAP), tops[-1] + VERDICT), "white")
    draw = ImageDraw.Draw(sheet)
    for top, heading in zip(tops, HEADINGS, strict=True):
        draw.multiline_text((GAP, top + 4), heading, QUIET, font(16))
    for place, one in enumerate(columns):
        left = SIDE + place * (PICTURE_WIDTH + GAP)
        for top, picture in zip(tops, one.pictures, strict=False):
            shown = Image.fromarray(picture)
            shown.thumbnail((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (left, top))
        write_verdict(draw, left, tops[-1], one)
    return sheet


def write_verdict(draw: ImageDraw.ImageDraw, left: int, top: int, one: Column) -> None:
    """Write OK or NG, the score, and whether that is right."""
    draw.text((left, top), "NG" if one.abnormal else "OK", RED if one.abnormal else GREEN, font(32))
    draw.text((left, top + 40), f"{one.times_threshold:.2f} x threshold", INK, font(16))
    wrong = "false alarm" if one.abnormal else "missed defect"
    draw.text((left, top + 62), "right" if one.abnormal == one.truth else wrong, QUIET, font(16))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that ships with Pillow."""
    return ImageFont.load_default(size)


if __name__ == "__main__":
    main()
