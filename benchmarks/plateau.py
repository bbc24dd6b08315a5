"""Train the shapes of Table 3 behind the plateau of the blind mask, by small batches: a CPU can, in half an hour each.

python benchmarks/plateau.py CATEGORY WORK [--only squares+rows ...] [--steps 6400] [--batch-size 8] [--seed 0]

The published training takes batches of 64 for up to 3,000 epochs. What gets over the plateau is the number of steps at
its learning rate, not the number of images in each: batches of 8 cost a fraction. WORK keeps the checkpoints; a shape
that was stopped goes on from there, and one that has its line in the study is not trained again. The first line is what
the mean good image would have as a reconstruction of everything: where the plateau lies.
"""

import argparse
from pathlib import Path

import torch
from scoring import measured, unsmoothed
from torch import nn

from metalad.data import Category, Images, load_images, read_category, split_validation
from metalad.methods.metal import Metal, MetalConfig
from metalad.nn.pixels import to_batch
from metalad.pipelines.benchmark.declaration import Configuration
from metalad.pipelines.benchmark.paper import TABLES
from metalad.pipelines.benchmark.run import RESULTS
from metalad.pipelines.benchmark.studies import Finding, Value, read_study, write_study
from metalad.pipelines.benchmark.suites import suite_named
from metalad.pipelines.train import VALIDATION_FRACTION
from metalad.runtime.settings import from_texts
from metalad.training.loop import Training, descend

STUDY = "plateau"
MEAN = "the mean good image"
BLIND = {
    cell.configuration.label: cell.configuration
    for cell in suite_named("table-3").cells()
    if {"mask=blind", "depth=1"} <= set(cell.configuration.settings)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+", choices=BLIND, default=list(BLIND))
    parser.add_argument("--steps", type=int, default=6400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    plan = Training(learning_rate=1e-4, batch_size=arguments.batch_size, steps=arguments.steps)
    papers = {MEAN: MEAN} | {label: configuration.paper for label, configuration in BLIND.items()}
    order = list(papers.values())
    for label in (MEAN, *arguments.only):
        done = read_study(arguments.out, STUDY)
        if any(finding.values["Table 3"] == papers[label] for finding in done):
            continue
        if label == MEAN:
            finding = of_the_mean(arguments.category, arguments.seed)
        else:
            finding = trained(arguments.category, arguments.work / label, BLIND[label], plan, arguments.seed)
        print(*finding.values.values(), sep="  ", flush=True)
        lines = sorted([*done, finding], key=lambda line: order.index(str(line.values["Table 3"])))
        print(write_study(arguments.out, STUDY, lines))


def trained(folder: Path, work: Path, configuration: Configuration, plan: Training, seed: int) -> Finding:
    config = from_texts(MetalConfig, configuration.settings)
    category, training, validation = read(folder, config, seed)
    torch.manual_seed(seed)
    detector = Metal(config)
    work.mkdir(parents=True, exist_ok=True)
    (kept,) = descend(
        detector,
        [plan.resolved(len(training))],
        seed=seed,
        precision="fp32",
        folder=work,
        training=training.pixels,
        validation=validation.pixels,
        progress=True,
    )
    printed = TABLES["Table 3"].number(folder.name, configuration.paper or "")
    values: dict[str, Value] = {
        "Table 3": configuration.paper,
        "printed": printed.value if printed else None,
        "steps": plan.steps,
        "images a step": plan.batch_size,
        "validation loss": kept.validation_loss,
    }
    return Finding(values | judged(detector, category))


def of_the_mean(folder: Path, seed: int) -> Finding:
    """Judge by a network that knows the mean and whose decoder adds nothing to it."""
    shape = BLIND["squares"].settings
    config = from_texts(MetalConfig, [text for text in shape if not text.startswith("target=")])
    category, training, validation = read(folder, config, seed)
    detector = Metal(config).eval()
    detector.prepare("train", training.pixels, seed)
    for parameter in detector.decoder[-1].parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        loss = float(detector.loss(to_batch(validation.pixels)))
    values: dict[str, Value] = {"Table 3": MEAN, "printed": None, "steps": 0, "images a step": None}
    return Finding(values | {"validation loss": loss} | judged(detector, category))


def read(folder: Path, config: MetalConfig, seed: int) -> tuple[Category, Images, Images]:
    category = read_category(folder, seed=seed)
    training, validation = (
        load_images(samples, config.image_size, strict=True)
        for samples in split_validation(category.train, VALIDATION_FRACTION, seed)
    )
    return category, training, validation


def judged(detector: Metal, category: Category) -> dict[str, Value]:
    images = load_images(category.test, detector.config.image_size, strict=True)
    found = measured(unsmoothed(detector, images, "raw"), images, detector.config.smoothing_sigma)
    return {"to 0.3": found["to 0.3"], "full": found["full"], "image": found["image, max"]}


if __name__ == "__main__":
    main()
