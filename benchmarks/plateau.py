"""Train the configurations of Table 3 with the blind mask beyond their plateau, with small batches.

python -m benchmarks.plateau CATEGORY WORK [--only squares+rows ...] [--steps 6400] [--batch-size 8] [--seed 0]

The published training uses batches of 64 for up to 3,000 epochs. The number of steps at its learning rate decides
whether training passes the plateau, not the number of images per step: batches of 8 cost a fraction, half an hour per
configuration on a CPU. WORK contains the checkpoints: an interrupted configuration resumes there, and one with a line
in the study is not trained again. The first line is for the mean good image as the reconstruction of every image: its
loss is that of the plateau.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness.declaration import paper_column
from benchmarks.harness.paper import TABLES
from benchmarks.harness.studies import Finding, Value, read_study, write_study
from benchmarks.harness.suite_run import RESULTS
from benchmarks.harness.suites import suite_named
from benchmarks.scoring import measured, unsmoothed
from metalad.data import Category, Images, load_images, read_category, split_validation
from metalad.methods.metal import Metal, MetalConfig
from metalad.nn.pixels import to_batch
from metalad.pipelines.benchmark.cells import Configuration
from metalad.pipelines.train import VALIDATION_FRACTION
from metalad.runtime.progress import bars
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
    columns = {MEAN: MEAN} | {label: paper_column(configuration) for label, configuration in BLIND.items()}
    order = list(columns.values())
    for label in (MEAN, *arguments.only):
        done = read_study(arguments.out, STUDY)
        if any(finding.values["Table 3"] == columns[label] for finding in done):
            continue
        if label == MEAN:
            finding = measure_mean_image(arguments.category, arguments.seed)
        else:
            finding = train_configuration(
                arguments.category, arguments.work / label, BLIND[label], plan, arguments.seed
            )
        print(*finding.values.values(), sep="  ", flush=True)
        lines = sorted([*done, finding], key=lambda line: order.index(str(line.values["Table 3"])))
        print(write_study(arguments.out, STUDY, lines))


def train_configuration(folder: Path, work: Path, configuration: Configuration, plan: Training, seed: int) -> Finding:
    config = from_texts(MetalConfig, configuration.settings)
    category, training, validation = read(folder, config, seed)
    torch.manual_seed(seed)
    detector = Metal(config)
    work.mkdir(parents=True, exist_ok=True)
    with bars(shown=True):
        (selected,) = descend(
            detector,
            [plan.resolved(len(training))],
            seed=seed,
            precision="fp32",
            folder=work,
            training=training.pixels,
            validation=validation.pixels,
        )
    printed = TABLES["Table 3"].number(folder.name, paper_column(configuration) or "")
    values: dict[str, Value] = {
        "Table 3": paper_column(configuration),
        "printed": printed.value if printed else None,
        "steps": plan.steps,
        "images a step": plan.batch_size,
        "validation loss": selected.validation_loss,
    }
    return Finding(values | measure(detector, category))


def measure_mean_image(folder: Path, seed: int) -> Finding:
    """Return the metrics of a network that outputs the mean image: its decoder adds zero."""
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
    return Finding(values | {"validation loss": loss} | measure(detector, category))


def read(folder: Path, config: MetalConfig, seed: int) -> tuple[Category, Images, Images]:
    category = read_category(folder, seed=seed)
    training, validation = (
        load_images(samples, config.framing, strict=True)
        for samples in split_validation(category.train, VALIDATION_FRACTION, seed)
    )
    return category, training, validation


def measure(detector: Metal, category: Category) -> dict[str, Value]:
    images = load_images(category.test, detector.config.framing, strict=True)
    found = measured(unsmoothed(detector, images, "raw"), images, detector.config.smoothing_sigma)
    return {"to 0.3": found["to 0.3"], "full": found["full"], "image": found["image, max"]}


if __name__ == "__main__":
    main()
