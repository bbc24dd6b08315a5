"""Plot how the three masks leak information, by number of epochs, from the rows of the suite `leak`.

python -m benchmarks.leak OUT.png [--results benchmarks/results]

Left: the validation loss of the longest run of each mask. A loss below that of the blind mask means that the patch
itself leaks into its reconstruction. Right: the effect on localization.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.suite_run import RESULTS, known_rows
from benchmarks.harness.suites import MASKS, suite_named
from metalad.pipelines.benchmark.rows import ResultRow
from metalad.runtime.files import replacing

COLORS = {"blind": "#2f6f9f", "zero-logit": "#c26a2d", "none": "#6d8b3c"}
WIDTHS = {"blind": 1.6, "zero-logit": 4.0, "none": 1.2}
"""The curves of the mask as printed and of no mask coincide: one line is wide, so that both are visible."""
METRICS = {"pixel_auroc": "-", "pixel_auroc_fpr30": "--"}
NAMES = {"pixel_auroc": "full", "pixel_auroc_fpr30": "to FPR 0.3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = list(known_rows(arguments.results, suite_named("leak")).values())
    if not rows:
        raise SystemExit("no rows yet: python -m benchmarks leak --data ROOT")
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    losses, areas = figure.subplots(1, 2)
    for mask in MASKS:
        of_mask = sorted(runs(rows, mask), key=length)
        draw_losses(losses, mask, of_mask)
        draw_areas(areas, mask, of_mask)
    for axes, label in ((losses, "validation loss"), (areas, "pixel AUROC, raw")):
        axes.set(xlabel="epochs", ylabel=label, xscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#d5dae1", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)
    with replacing(arguments.out) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def runs(rows: Sequence[ResultRow], mask: str) -> Iterator[ResultRow]:
    return (row for row in rows if row.config["mask"] == mask)


def length(row: ResultRow) -> int:
    """Return the number of epochs of a run; its weights are those of the best epoch."""
    return int(row.training["epochs"])


def draw_losses(axes: Axes, mask: str, rows: Sequence[ResultRow]) -> None:
    if rows:
        epochs, _, validation = zip(*rows[-1].training["losses"], strict=True)
        axes.plot(epochs, validation, color=COLORS[mask], linewidth=WIDTHS[mask], label=mask)


def draw_areas(axes: Axes, mask: str, rows: Sequence[ResultRow]) -> None:
    for metric, style in METRICS.items():
        values = [row.metrics["raw"]["model"][metric] for row in rows]
        axes.plot(
            [length(row) for row in rows],
            values,
            style,
            color=COLORS[mask],
            linewidth=WIDTHS[mask],
            marker="o",
            markersize=3,
            label=f"{mask}, {NAMES[metric]}",
        )


if __name__ == "__main__":
    main()
