"""Average the reports of runs that differ in the seed alone."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metalad.results.report import METRIC_NAMES, Report
from metalad.visualization.plots import percent

DECISIONS = ("found", "false_alarms")
SHOWN = ("image_auroc", "pixel_auroc_fpr30", "pixel_aupro", "pixel_ap", *DECISIONS)


@dataclass(frozen=True)
class SeedRow:
    """One method with one set of settings: its runs, and the values of each of them by metric.

    values: the metrics of the deciding scoring at the model's resolution, and the fractions of anomalous (`found`) and
    of good images (`false_alarms`) above the threshold; of the runs in which they are defined.
    """

    method: str
    runs: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds, None if no run has the metric."""
        return statistics.mean(self.values[metric]) if self.values[metric] else None

    def deviation(self, metric: str) -> float | None:
        """Return the standard deviation over seeds (n − 1), None for fewer than two values."""
        return statistics.stdev(self.values[metric]) if len(self.values[metric]) > 1 else None

    def text(self, metric: str) -> str:
        """Return mean ± standard deviation in percent."""
        spread = self.deviation(metric)
        return percent(self.mean(metric), "-") + ("" if spread is None else f" ± {percent(spread)}")

    def to_json(self) -> dict[str, Any]:
        """Return method, runs, and mean and standard deviation of each metric."""
        metrics = {name: {"mean": self.mean(name), "std": self.deviation(name)} for name in self.values}
        return {"method": self.method, "runs": list(self.runs), "metrics": metrics}


def over_seeds(names: Sequence[str], reports: Sequence[Report]) -> tuple[SeedRow, ...]:
    """Return a row for each method and set of settings, in the order of the runs; empty if no two runs share theirs."""
    groups: dict[str, list[int]] = {}
    for index, report in enumerate(reports):
        settings = {name: report.settings.get(name) for name in ("config", "protocol", "false_alarms")}
        stages = json.dumps(
            [report.method, report.resolution, report.chosen.name, settings], sort_keys=True, default=str
        )
        # A run without stored settings, or one with the seed of another, is a row of its own.
        seeds = [reports[other].settings.get("seed") for other in groups.get(stages, ())]
        alone = report.settings.get("seed") is None or report.settings["seed"] in seeds
        groups.setdefault(f"{stages} {index}" if alone else stages, []).append(index)
    if all(len(group) < 2 for group in groups.values()):
        return ()
    return tuple(
        SeedRow(reports[group[0]].method, tuple(names[i] for i in group), _values([reports[i] for i in group]))
        for group in groups.values()
    )


def seed_table(rows: Sequence[SeedRow]) -> list[list[str]]:
    """Return the cells of a table: a header, and a line for each row."""
    header = ["mean ± std over seeds, %", "seeds", *(name.replace("_", " ") for name in SHOWN)]
    return [header, *([row.method, str(len(row.runs)), *map(row.text, SHOWN)] for row in rows)]


def _values(reports: Sequence[Report]) -> dict[str, tuple[float, ...]]:
    found: dict[str, list[float | None]] = {name: [] for name in (*METRIC_NAMES, *DECISIONS)}
    for report in reports:
        counts = report.chosen.confusion
        for name in METRIC_NAMES:
            found[name].append(getattr(report.metrics, name))
        found["found"].append(_fraction(counts.tp, counts.fn))
        found["false_alarms"].append(_fraction(counts.fp, counts.tn))
    return {name: tuple(value for value in values if value is not None) for name, values in found.items()}


def _fraction(above: int, below: int) -> float | None:
    return above / (above + below) if above + below else None
