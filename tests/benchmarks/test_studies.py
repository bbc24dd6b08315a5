from pathlib import Path

import pytest

from benchmarks.harness.pages import fill
from benchmarks.harness.studies import Finding, read_study, study_cells, study_path, write_study
from metalad.runtime.errors import ConfigError, RunError

FINDINGS = [
    Finding({"sigma": "4", "full": 0.85949}, "0123456789ab", "some processor", "2.13.0"),
    Finding({"sigma": "8", "images": 83}, "0123456789ab", "some processor", "2.13.0"),
]
PAGE = "# Page\n<!-- table: study:trial -->\nold\n<!-- end table -->\n"


def test_findings_are_read_as_written(tmp_path: Path) -> None:
    write_study(tmp_path, "trial", FINDINGS)
    assert read_study(tmp_path, "trial") == FINDINGS
    assert read_study(tmp_path, "other") == []


def test_a_column_is_shown_if_any_finding_has_it() -> None:
    assert study_cells(FINDINGS) == [["sigma", "full", "images"], ["4", "0.859", "–"], ["8", "–", "83"]]


def test_a_page_shows_a_study_with_commit_and_machine(tmp_path: Path) -> None:
    write_study(tmp_path, "trial", FINDINGS)
    page = fill(PAGE, tmp_path, "page.md")
    assert "| sigma | full | images |\n| --- | --- | --- |\n| 4 | 0.859 | – |\n| 8 | – | 83 |\n" in page
    assert "`studies/trial.jsonl`; commit 01234567; torch 2.13.0; some processor." in page
    assert "old" not in page
    assert fill(page, tmp_path, "page.md") == page


def test_a_missing_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"page\.md: there is no file .* for the table of the study 'trial'"):
        fill(PAGE, tmp_path, "page.md")


@pytest.mark.parametrize("line", ["{", "[]", '{"values": {}, "nonsense": 1}'])
def test_a_damaged_file_is_an_error(tmp_path: Path, line: str) -> None:
    study_path(tmp_path, "trial").parent.mkdir()
    study_path(tmp_path, "trial").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"trial\.jsonl: not a file of findings"):
        read_study(tmp_path, "trial")
