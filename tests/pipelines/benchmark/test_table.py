import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from metalad.pipelines.benchmark.rows import ResultRow
from metalad.pipelines.benchmark.table import COLUMNS, csv_table, markdown_table, table_lines, text_table
from tests.pipelines.benchmark.material import CELLS, row_of

METRICS = ("image_auroc", "pixel_auroc", "pixel_auroc_fpr30", "pixel_aupro", "pixel_ap")


def row_with(index: int, value: float | None, **counts: int) -> ResultRow:
    scoring: dict[str, Any] = {
        "model": dict.fromkeys(METRICS, value),
        "confusion": {"tp": 3, "fn": 1, "fp": 0, "tn": 2, **counts},
    }
    other = {"model": dict.fromkeys(METRICS, 0.0), "confusion": {}}
    return row_of(CELLS[index], metrics={"calibrated": scoring, "raw": other})


ROWS = {row.key: row for row in (row_with(0, 0.8), row_with(1, 0.9, tp=4, fn=0, fp=1, tn=1))}
LINES = table_lines(CELLS, ROWS)


def test_seeds_are_averaged_and_unfinished_methods_have_dashes() -> None:
    header, first, second = text_table(LINES).splitlines()
    assert header.split()[:3] == ["category", "method", "seeds"]
    # 0.8 and 0.9: mean 0.85, sample standard deviation 0.0707; 3 and 4 of 4 found; 0 and 1 of 2 false alarms.
    mean = "0.850 ± 0.071"
    assert first.startswith("cookie    one")
    assert first.count(mean) == 5
    assert first.endswith("12 ± 0")
    assert "0.875 ± 0.177" in first
    assert "0.250 ± 0.354" in first
    assert second.split() == ["cookie", "two", "0", *["–"] * len(COLUMNS)]


def test_markdown_and_csv_have_the_same_values() -> None:
    lines = markdown_table(LINES).splitlines()
    assert lines[0].startswith("| category | method | seeds | image AUROC | pixel AUROC | to FPR 0.3 | AUPRO | AP |")
    assert lines[2].startswith("| cookie | one | 2 | 0.850 ± 0.071 |")
    assert "standard deviation over seeds" in lines[-1]
    first, second = csv.DictReader(io.StringIO(csv_table(LINES)))
    assert (first["category"], first["method"], first["seeds"]) == ("cookie", "one", "2")
    assert float(first["pixel_aupro_mean"]) == pytest.approx(0.85)
    assert float(first["false_alarms_std"]) == pytest.approx(0.3536, abs=1e-4)
    assert (second["seeds"], second["image_auroc_mean"]) == ("0", "")


def test_undefined_metrics_are_omitted() -> None:
    row = row_with(0, None, tp=0, fn=0)
    cells = markdown_table(table_lines(CELLS[:1], {row.key: row})).splitlines()[2].split(" | ")
    assert cells[3:10] == ["–"] * 6 + ["0.000"]


def test_the_methods_own_scoring_is_used() -> None:
    row = row_with(0, 0.8)
    raw = replace(row, config={"scoring": "raw"}, metrics={"raw": row.metrics["calibrated"], "calibrated": {}})
    assert "0.800" in text_table(table_lines(CELLS[:1], {row.key: raw}))


def test_special_characters_in_names_do_not_break_a_table() -> None:
    odd = [replace(line, category="a|b\n\udcff") for line in LINES]
    assert "| a\\|b?\\udcff | one |" in markdown_table(odd)
    csv_table(odd).encode("utf-8")
    assert len(text_table(odd).splitlines()) == 3
