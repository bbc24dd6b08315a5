"""Compare both interpretations of the paper's Table 3, with both masks, with its printed numbers, from recorded rows.

python -m benchmarks.reading CATEGORY [--protocol paper]

The areas may be full AUROC or end at a false-positive rate of 0.3; the code of the paper may have used the mask as
printed, which leaks information.
"""

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness.declaration import paper_column
from benchmarks.harness.paper import TABLES
from benchmarks.harness.studies import Finding, Value, write_study
from benchmarks.harness.suite_run import RESULTS, known_rows
from benchmarks.harness.suites import suite_named
from metalad.pipelines.benchmark.rows import ResultRow

NAMES = {"default": "reading", "paper": "reading-published"}
READINGS = {"full": "pixel_auroc", "to 0.3": "pixel_auroc_fpr30"}
MASKS = {"literal": ("zero-logit", "none"), "blind": ("blind",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category")
    parser.add_argument("--protocol", choices=NAMES, default="default", help="the protocol of the rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    suite, table = suite_named("table-3"), TABLES["Table 3"]
    rows = known_rows(arguments.out, suite)
    findings = []
    for column in table.columns:
        cells = [
            cell
            for cell in suite.cells()
            if (cell.category, paper_column(cell.configuration)) == (arguments.category, column)
        ]
        line = table.number(arguments.category, column)
        found = [rows[cell.key] for cell in cells if cell.key in rows and cell.protocol == arguments.protocol]
        values: dict[str, Value] = {"Table 3": column, "printed": line.value if line else None}
        for mask, names in MASKS.items():
            for reading, metric in READINGS.items():
                values[f"{mask} mask, {reading}"] = mean(found, names, metric)
        findings.append(Finding(values))
        print(*values.values(), sep="  ")
    print(write_study(arguments.out, NAMES[arguments.protocol], findings))


def mean(rows: Iterable[ResultRow], masks: tuple[str, ...], metric: str) -> float | None:
    values = [row.metrics["raw"]["model"][metric] for row in rows if row.config["mask"] in masks]
    return statistics.mean(values) if values else None


if __name__ == "__main__":
    main()
