"""Plot the loss curves of the published training for each configuration of Table 3, from the rows of the suite.

python -m benchmarks.lengths CATEGORY OUT.png [--results benchmarks/results]

The validation loss of each run over its epochs, with the raw pixel AUROC up to a false-positive rate of 0.3 at its end.
The horizontal line is the loss of the mean good image as a reconstruction, measured by `plateau.py`.
"""

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.studies import read_study
from benchmarks.harness.suite_run import RESULTS, known_rows
from benchmarks.harness.suites import suite_named
from benchmarks.leak import COLORS
from benchmarks.plateau import MEAN, STUDY
from metalad.pipelines.benchmark.rows import ResultRow
from metalad.runtime.files import replacing

STYLES = {("squares",): "-", ("squares", "rows"): "--", ("squares", "columns"): "-.", ("rows", "columns"): ":"}
MARGIN = 0.12
"""Height of the plot above the highest final loss; above it, all curves are alike."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category")
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    suite = suite_named("table-3")
    rows = known_rows(arguments.results, suite)
    cells = [cell for cell in suite.cells() if (cell.category, cell.protocol) == (arguments.category, "paper")]
    found = [(cell.configuration.label, rows[cell.key]) for cell in cells if cell.key in rows]
    if not found:
        raise SystemExit(
            f"no rows yet: python -m benchmarks table-3 --data ROOT --protocol paper --only {cells[0].name}"
        )
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for label, row in found:
        draw(axes, label, row)
    for finding in read_study(arguments.results, STUDY):
        if finding.values["Table 3"] == MEAN:
            name = f"{MEAN}: {finding.values['to 0.3']:.3f}"
            axes.axhline(float(str(finding.values["validation loss"])), color="#8a93a3", linewidth=0.8, label=name)
    highest = max(row.training["validation_loss"] for _, row in found)
    axes.set(xlabel="epochs", ylabel="validation loss", ylim=(None, highest + MARGIN), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#d5dae1", linewidth=0.6)
    figure.legend(
        loc="outside right upper", frameon=False, fontsize=8, title="raw pixel AUROC up to 0.3", title_fontsize=8
    )
    with replacing(arguments.out) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def draw(axes: Axes, label: str, row: ResultRow) -> None:
    epochs, _, validation = zip(*row.training["losses"], strict=True)
    area = row.metrics["raw"]["model"]["pixel_auroc_fpr30"]
    name = f"{label.partition(',')[0]}, {row.config['mask']}, seed {row.seed}: {area:.3f}"
    style = STYLES.get(tuple(row.config["tokens"]), (0, (1, 4)))
    axes.plot(epochs, validation, color=COLORS[row.config["mask"]], linestyle=style, linewidth=1.5, label=name)
    axes.plot(epochs[-1], validation[-1], "o", color=COLORS[row.config["mask"]], markersize=4)


if __name__ == "__main__":
    main()
