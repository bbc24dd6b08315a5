"""Draw what the three masks let through, epoch by epoch, from the rows of the suite `leak`.

python benchmarks/leak.py OUT.png [--results benchmarks/results]

Left: the validation loss of the longest run of each mask. A loss that falls below the blind mask's can only come from
the patch itself. Right: what localization gains or loses by it.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalad.pipelines.benchmark.rows import Row
from metalad.pipelines.benchmark.run import RESULTS, known_rows
from metalad.pipelines.benchmark.suites import MASKS, suite_named
from metalad.runtime.files import replacing

COLOURS = {"blind": "#2f6f9f", "zero-logit": "#c26a2d", "none": "#6d8b3c"}
WIDTHS = {"blind": 1.6, "zero-logit": 4.0, "none": 1.2}
"""The literal mask and none lie one on the other: the one is drawn wide, so that both are seen."""
METRICS = {"pixel_auroc": "-", "pixel_auroc_fpr30": "--"}
NAMES = {"pixel_auroc": "full", "pixel_auroc_fpr30": "to FPR 0.3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = list(known_rows(arguments.results, suite_named("leak")).values())
    if not rows:
        raise SystemExit("no rows yet: metalad benchmark leak --data ROOT")
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


def runs(rows: Sequence[Row], mask: str) -> Iterator[Row]:
    return (row for row in rows if row.config["mask"] == mask)


def length(row: Row) -> int:
    """Return the epochs that a run was trained for; its weights are those of the best of them."""
    return int(row.training["epochs"])


def draw_losses(axes: Axes, mask: str, rows: Sequence[Row]) -> None:
    if rows:
        epochs, _, validation = zip(*rows[-1].training["losses"], strict=True)
        axes.plot(epochs, validation, color=COLOURS[mask], linewidth=WIDTHS[mask], label=mask)


def draw_areas(axes: Axes, mask: str, rows: Sequence[Row]) -> None:
    for metric, style in METRICS.items():
        values = [row.metrics["raw"]["model"][metric] for row in rows]
        axes.plot(
            [length(row) for row in rows],
            values,
            style,
            color=COLOURS[mask],
            linewidth=WIDTHS[mask],
            marker="o",
            markersize=3,
            label=f"{mask}, {NAMES[metric]}",
        )


if __name__ == "__main__":
    main()
