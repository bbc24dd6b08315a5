from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metalad.pipelines.benchmark.declaration import Configuration, Grid, Suite
from metalad.pipelines.benchmark.rows import append_row
from metalad.pipelines.benchmark.suites import suite_named
from metalad.pipelines.benchmark.tables import fill, perturbed, render, render_defects, write_tables
from metalad.runtime.errors import ConfigError, RunError
from tests.pipelines.benchmark.material import SUITE, row_of

ROOT = Path(__file__).resolve().parents[3]
PAPER = Suite(
    "trial",
    "",
    (
        Grid(
            (Configuration("ours", paper="Squares + Rows"), Configuration("other", settings=("depth=2",))),
            ("bottle", "cable"),
            (0, 1, 2),
        ),
    ),
    scorings=("raw",),
    paper_table="Table 3",
)


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_no_table_has_drifted_from_the_rows() -> None:
    assert [str(page) for page in perturbed(ROOT, ROOT / "benchmarks" / "results")] == [], (
        "renew them: python -m metalad.pipelines.benchmark.tables --write"
    )


def test_seeds_are_averaged_and_compared_with_the_paper_in_both_readings() -> None:
    # 0.80, 0.85, 0.90 have mean 0.85 and (n - 1) deviation 0.05; Table 3 has 0.850 for bottle.
    rows = [row_of(cell, value) for cell, value in zip(PAPER.cells()[:3], (0.80, 0.85, 0.90), strict=True)]
    header, _, ours, other, cable = render(PAPER, {row.key: row for row in rows}).splitlines()[:5]
    assert cells_of(header)[4:] == ["to 0.3", "full", "image", "paper", "Δ to 0.3", "Δ full", "s"]
    mean = "0.850 ± 0.050"
    assert cells_of(ours) == ["bottle", "ours", "raw", "3", mean, mean, mean, "0.850", "+0.000", "+0.000", "12"]
    assert cells_of(other) == ["bottle", "not run: other", *["–"] * 9]
    assert cells_of(cable) == ["cable", "all", *["–"] * 9]


def test_both_protocols_have_lines_of_their_own_where_they_were_trained() -> None:
    grid = Grid((Configuration("one"), Configuration("two", settings=("depth=2",))), ("bottle",))
    suite = Suite("trial", "", (grid, replace(grid, protocol="paper")), scorings=("raw",))
    cells = {cell.name: cell for cell in suite.cells()}
    rows = {cells[name].key: row_of(cells[name], value) for name, value in (("bottle:one:0", 0.1),)}
    published = cells["bottle:one:0:paper"]
    assert [cells_of(line)[1:6] for line in render(suite, rows).splitlines()[2:4]] == [
        ["one", "default", "raw", "1", "0.100"],
        ["not run: two", "–", "–", "–", "–"],
    ]
    _, line, _ = render(suite, rows | {published.key: row_of(published, 0.2)}).splitlines()[2:5]
    assert cells_of(line)[1:6] == ["one", "as published", "raw", "1", "0.200"]


def test_a_setting_younger_than_a_row_had_its_default_then() -> None:
    first, second = PAPER.cells()[:2]
    rows = {first.key: row_of(first, 0.2), second.key: row_of(second, 0.4, config={"depth": 1, "young": "default"})}
    assert "0.300" in render(PAPER, rows)


def test_a_gpu_does_not_make_a_cpu_look_fast() -> None:
    first, second = PAPER.cells()[:2]
    quick = {"train_seconds": 1.0, "evaluate_seconds": 1.0}
    rows = {first.key: row_of(first), second.key: row_of(second, device="cuda", cost=quick)}
    assert cells_of(render(PAPER, rows).splitlines()[2])[-1] == "12"
    rows = {second.key: rows[second.key]}
    assert cells_of(render(PAPER, rows).splitlines()[2])[-1] == "2"


def test_the_two_readings_are_not_mixed() -> None:
    row = row_of(PAPER.cells()[0])
    metrics = {"raw": {"model": {"pixel_auroc_fpr30": 0.6, "pixel_auroc": 0.9, "image_auroc": None}}}
    line = render(PAPER, {row.key: replace(row, metrics=metrics)}).splitlines()[2]
    assert cells_of(line)[4:10] == ["0.600", "0.900", "–", "0.850", "-0.250", "+0.050"]


def test_head_ct_is_in_percent_and_parameters_in_millions() -> None:
    table_5 = suite_named("table-5")
    cells = [cell for cell in table_5.chosen(()) if cell.configuration.label == "squares+rows"]
    rows = [row_of(cell, 0.8635) for cell in cells]
    line = render(table_5, {row.key: row for row in rows}).splitlines()[2]
    assert cells_of(line)[:3] == ["headct", "squares+rows", "default"]
    assert cells_of(line)[3:8] == ["raw", "5", "86.35 ± 0.00", "86.32 ± 4.03", "+0.03"]
    table_6 = suite_named("table-6")
    row = row_of(table_6.cells()[0], metrics={}, training={})
    assert cells_of(render(table_6, {row.key: row}).splitlines()[2]) == ["metal, products", "17.86", "17.8", "+0.06"]


def test_the_caption_says_where_the_rows_come_from() -> None:
    rows = {cell.key: row_of(cell, commit="a" * 40 + "-dirty") for cell in SUITE.cells()[:3]}
    rows["gone"] = row_of(SUITE.cells()[3])
    _, _, below = render(SUITE, rows).partition("\n\n")
    assert max(map(len, below.splitlines())) <= 120
    caption = " ".join(below.split())
    for words in (
        "3 of 4 cells, `trial.jsonl`",
        "commit aaaaaaaa-dirty",
        "torch 2.13.0",
        "some processor, 2 threads of 2, fp32",
        "1 rows of cells that are declared no more",
    ):
        assert words in caption
    assert "No rows yet" in render(SUITE, {})


def test_rows_of_other_settings_or_images_are_not_averaged() -> None:
    first, second = PAPER.cells()[:2]
    for change in ({"config": {"depth": 2}}, {"data": {"all": "other"}}):
        rows = {first.key: row_of(first), second.key: row_of(second, **change)}
        with pytest.raises(RunError, match="bottle, ours differ in settings or images"):
            render(PAPER, rows)


def test_blocks_are_filled_and_the_rest_of_a_page_stays(tmp_path: Path) -> None:
    cell = suite_named("smoke").cells()[0]
    append_row(tmp_path / "smoke.jsonl", row_of(cell))
    page = "before\n<!-- table: smoke -->\nold\n<!-- end table -->\nbetween <!-- x -->\n"
    page += "<!-- table: suites -->\n<!-- end table -->\n"
    filled = fill(page, tmp_path, "page.md")
    assert filled.startswith("before\n<!-- table: smoke -->\n| category |")
    assert "old" not in filled
    assert "\n<!-- end table -->\nbetween <!-- x -->\n" in filled
    assert "| `table-3` | the paper's ablation" in filled
    assert fill(filled, tmp_path, "page.md") == filled


def test_kinds_of_defect_stand_below_each_other_by_the_scoring_that_judges() -> None:
    names = ("pixel_aupro", "pixel_ap", "pixel_auroc_fpr30", "image_auroc")

    def judged(value: float, found: int) -> dict[str, Any]:
        kind = {"images": 9, "found": found, "model": dict.fromkeys(names, value)}
        return {"model": dict.fromkeys(names, 0.1), "per_defect": {"crack": kind, "dent": kind}}

    rows = {
        cell.key: row_of(
            cell,
            config={"scoring": "calibrated"},
            metrics={"calibrated": judged(0.6 + 0.2 * cell.seed, 4 + cell.seed), "raw": judged(0.2, 0)},
        )
        for cell in SUITE.cells()
    }
    header, _, *lines = render_defects(SUITE, rows).partition("\n\n")[0].splitlines()
    assert cells_of(header)[:4] == ["category", "defect", "configuration", "found"]
    assert [cells_of(line) for line in lines] == [
        ["cookie", kind, label, "4, 5 of 9", *["0.700 ± 0.141"] * 4]
        for kind in ("crack", "dent")
        for label in ("one", "two")
    ]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<!-- table: defects:nonsense -->\n<!-- end table -->", "which is no suite"),
        ("<!-- table: nonsense -->\n<!-- end table -->", "which is no suite"),
        ("<!-- table: smoke -->\n", "has no <!-- end table"),
    ],
)
def test_a_malformed_block_is_an_error(page: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        fill(page, tmp_path, "page.md")


def test_pages_of_a_checkout_are_renewed(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "deep" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text("<!-- table: smoke -->\nold\n<!-- end table -->\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("no table\n", encoding="utf-8")
    assert list(perturbed(tmp_path, tmp_path)) == [page]
    assert write_tables(tmp_path, tmp_path) == [page]
    assert perturbed(tmp_path, tmp_path) == {}
