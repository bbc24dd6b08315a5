from dataclasses import replace
from typing import Any

import pytest

from benchmarks.harness.declaration import Grid, PaperConfiguration, Suite
from benchmarks.harness.suites import suite_named
from benchmarks.harness.tables import comparison_table, defect_table, suite_table
from metalad.pipelines.benchmark.cells import Configuration
from metalad.runtime.errors import RunError
from tests.benchmarks.material import SUITE
from tests.pipelines.benchmark.material import row_of

PAPER = Suite(
    "trial",
    "",
    (
        Grid(
            (
                PaperConfiguration("ours", "metal", paper="Squares + Rows"),
                Configuration("other", "metal", ("depth=2",)),
            ),
            ("bottle", "cable"),
            (0, 1, 2),
        ),
    ),
    scorings=("raw",),
    paper_table="Table 3",
)


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seeds_are_averaged_and_compared_with_the_paper_in_both_interpretations() -> None:
    # 0.80, 0.85, 0.90 have mean 0.85 and (n - 1) deviation 0.05; Table 3 has 0.850 for bottle.
    rows = [row_of(cell, value) for cell, value in zip(PAPER.cells()[:3], (0.80, 0.85, 0.90), strict=True)]
    header, _, ours, other, cable = suite_table(PAPER, {row.key: row for row in rows}).splitlines()[:5]
    assert cells_of(header)[4:] == ["to 0.3", "full", "image", "paper", "Δ to 0.3", "Δ full", "s"]
    mean = "0.850 ± 0.050"
    assert cells_of(ours) == ["bottle", "ours", "raw", "3", mean, mean, mean, "0.850", "+0.000", "+0.000", "12"]
    assert cells_of(other) == ["bottle", "not run: other", *["–"] * 9]
    assert cells_of(cable) == ["cable", "all", *["–"] * 9]


def test_each_protocol_with_rows_has_its_own_line() -> None:
    grid = Grid((Configuration("one", "metal"), Configuration("two", "metal", ("depth=2",))), ("bottle",))
    suite = Suite("trial", "", (grid, replace(grid, protocol="paper")), scorings=("raw",))
    cells = {cell.name: cell for cell in suite.cells()}
    rows = {cells[name].key: row_of(cells[name], value) for name, value in (("bottle:one:0", 0.1),)}
    published = cells["bottle:one:0:paper"]
    assert [cells_of(line)[1:6] for line in suite_table(suite, rows).splitlines()[2:4]] == [
        ["one", "default", "raw", "1", "0.100"],
        ["not run: two", "–", "–", "–", "–"],
    ]
    _, line, _ = suite_table(suite, rows | {published.key: row_of(published, 0.2)}).splitlines()[2:5]
    assert cells_of(line)[1:6] == ["one", "as published", "raw", "1", "0.200"]


def test_rows_without_a_newer_setting_are_averaged_with_rows_that_have_it() -> None:
    first, second = PAPER.cells()[:2]
    rows = {first.key: row_of(first, 0.2), second.key: row_of(second, 0.4, config={"depth": 1, "new": "default"})}
    assert "0.300" in suite_table(PAPER, rows)


def test_seconds_are_those_of_cpu_rows_if_there_are_any() -> None:
    first, second = PAPER.cells()[:2]
    fast = {"train_seconds": 1.0, "evaluate_seconds": 1.0}
    rows = {first.key: row_of(first), second.key: row_of(second, device="cuda", cost=fast)}
    assert cells_of(suite_table(PAPER, rows).splitlines()[2])[-1] == "12"
    rows = {second.key: rows[second.key]}
    assert cells_of(suite_table(PAPER, rows).splitlines()[2])[-1] == "2"


def test_the_two_interpretations_have_separate_columns() -> None:
    row = row_of(PAPER.cells()[0])
    metrics = {"raw": {"model": {"pixel_auroc_fpr30": 0.6, "pixel_auroc": 0.9, "image_auroc": None}}}
    line = suite_table(PAPER, {row.key: replace(row, metrics=metrics)}).splitlines()[2]
    assert cells_of(line)[4:10] == ["0.600", "0.900", "–", "0.850", "-0.250", "+0.050"]


def test_head_ct_is_in_percent_and_parameters_are_in_millions() -> None:
    table_5 = suite_named("table-5")
    cells = [cell for cell in table_5.selected(()) if cell.configuration.label == "squares+rows"]
    rows = [row_of(cell, 0.8635) for cell in cells]
    line = suite_table(table_5, {row.key: row for row in rows}).splitlines()[2]
    assert cells_of(line)[:3] == ["headct", "squares+rows", "default"]
    assert cells_of(line)[3:8] == ["raw", "5", "86.35 ± 0.00", "86.32 ± 4.03", "+0.03"]
    table_6 = suite_named("table-6")
    row = row_of(table_6.cells()[0], metrics={}, training={})
    assert cells_of(suite_table(table_6, {row.key: row}).splitlines()[2]) == [
        "metal, products",
        "17.86",
        "17.8",
        "+0.06",
    ]


def test_the_caption_gives_the_origin_of_the_rows() -> None:
    rows = {cell.key: row_of(cell, commit="a" * 40 + "-dirty") for cell in SUITE.cells()[:3]}
    rows["gone"] = row_of(SUITE.cells()[3])
    _, _, below = suite_table(SUITE, rows).partition("\n\n")
    assert max(map(len, below.splitlines())) <= 120
    caption = " ".join(below.split())
    for part in (
        "3 of 4 cells, `trial.jsonl`",
        "commit aaaaaaaa-dirty",
        "torch 2.13.0",
        "some processor, 2 threads of 2, fp32",
        "1 rows of cells that are no longer declared",
    ):
        assert part in caption
    assert "No rows yet" in suite_table(SUITE, {})


def test_rows_with_different_settings_or_images_are_not_averaged() -> None:
    first, second = PAPER.cells()[:2]
    for change in ({"config": {"depth": 2}}, {"data": {"all": "other"}}):
        rows = {first.key: row_of(first), second.key: row_of(second, **change)}
        with pytest.raises(RunError, match="bottle, ours differ in settings or images"):
            suite_table(PAPER, rows)


def test_the_table_by_defect_type_uses_the_default_scoring() -> None:
    names = ("pixel_aupro", "pixel_ap", "pixel_auroc_fpr30", "image_auroc")

    def measured(value: float, found: int) -> dict[str, Any]:
        kind = {"images": 9, "found": found, "model": dict.fromkeys(names, value)}
        return {"model": dict.fromkeys(names, 0.1), "per_defect": {"crack": kind, "dent": kind}}

    rows = {
        cell.key: row_of(
            cell,
            config={"scoring": "calibrated"},
            metrics={"calibrated": measured(0.6 + 0.2 * cell.seed, 4 + cell.seed), "raw": measured(0.2, 0)},
        )
        for cell in SUITE.cells()
    }
    header, _, *lines = defect_table(SUITE, rows).partition("\n\n")[0].splitlines()
    assert cells_of(header)[:4] == ["category", "defect", "configuration", "found"]
    assert [cells_of(line) for line in lines] == [
        ["cookie", kind, label, "4, 5 of 9", *["0.700 ± 0.141"] * 4]
        for kind in ("crack", "dent")
        for label in ("one", "two")
    ]


def test_the_comparison_has_found_defects_false_alarms_and_means_over_categories() -> None:
    one, two = (Configuration(name, "metal", (f"depth={depth}",)) for depth, name in ((2, "one"), (3, "two")))
    suite = Suite("trial", "", (Grid((one, two), ("bottle", "cable")),), scorings=("calibrated",))
    names = ("pixel_auroc_fpr30", "pixel_ap", "image_auroc")

    def measured(value: float, masks: bool) -> dict[str, Any]:
        model = {name: value if masks or name == "image_auroc" else None for name in names}
        return {"calibrated": {"model": model, "confusion": {"tp": 3, "fn": 1, "fp": 1, "tn": 9}, "per_defect": {}}}

    cells = {cell.name: cell for cell in suite.cells()}
    rows = {
        cells[name].key: row_of(cells[name], config={"scoring": "calibrated"}, metrics=measured(value, masks))
        for name, value, masks in (("bottle:one:0", 0.9, True), ("cable:one:0", 0.7, False))
    }
    header, _, *lines = comparison_table(suite, rows).partition("\n\n")[0].splitlines()
    assert cells_of(header) == ["category", "method", "image AUROC", "to 0.3", "AP", "found", "false alarms", "s"]
    assert [cells_of(line) for line in lines[:3]] == [
        ["bottle", "one", "0.900", "0.900", "0.900", "0.750", "0.100", "12"],
        ["cable", "one", "0.700", "–", "–", "0.750", "0.100", "12"],
        ["mean of 2", "one", "0.800", "0.900", "0.900", "0.750", "0.100", "–"],
    ]
