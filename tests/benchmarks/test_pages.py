from pathlib import Path

import pytest

from benchmarks.harness.pages import fill, outdated_pages, write_tables
from benchmarks.harness.suites import suite_named
from metalad.pipelines.benchmark.rows import append_row
from metalad.runtime.errors import ConfigError
from tests.pipelines.benchmark.material import row_of

ROOT = Path(__file__).resolve().parents[2]


def test_all_tables_agree_with_the_rows() -> None:
    assert [str(page) for page in outdated_pages(ROOT, ROOT / "benchmarks" / "results")] == [], (
        "regenerate them: python -m benchmarks --tables"
    )


def test_blocks_are_filled_and_the_rest_of_a_page_is_unchanged(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: defects:nonsense -->\n<!-- end table -->", "there is no suite"),
        ("<!-- table: nonsense -->\n<!-- end table -->", "there is no suite"),
        ("<!-- table: smoke -->\n", "has no <!-- end table"),
    ],
)
def test_a_malformed_block_is_an_error(page: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fill(page, tmp_path, "page.md")


def test_pages_of_a_checkout_are_regenerated(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "deep" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text("<!-- table: smoke -->\nold\n<!-- end table -->\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("no table\n", encoding="utf-8")
    assert list(outdated_pages(tmp_path, tmp_path)) == [page]
    assert write_tables(tmp_path, tmp_path) == [page]
    assert outdated_pages(tmp_path, tmp_path) == {}
