import inspect
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.harness import command as module
from benchmarks.harness.category_search import CategoryFolder
from benchmarks.harness.command import build_parser, main
from benchmarks.harness.suite_run import SuiteOutcome, run_suite
from benchmarks.harness.suites import suite_named
from metalad.pipelines.benchmark.cells import Cell
from metalad.pipelines.benchmark.rows import append_row
from tests.pipelines.benchmark.material import row_of

ROOT = Path(__file__).resolve().parents[2]
SMOKE = suite_named("smoke")


def test_options_are_the_functions_keywords_with_their_defaults() -> None:
    keywords = {name: entry.default for name, entry in inspect.signature(run_suite).parameters.items()}
    parsed = vars(build_parser().parse_args([]))
    commands = {"listing", "verify", "tables", "json", "quiet"}
    options = {name: value for name, value in parsed.items() if name not in commands}
    assert set(options) == set(keywords) - {"progress"}
    defaults = {name: value for name, value in keywords.items() if name not in ("suite", "progress")}
    assert {name: tuple(options[name]) if name == "only" else options[name] for name in defaults} == defaults


def test_lists_need_no_torch(tmp_path: Path) -> None:
    for arguments in ([], ["smoke", "--list", "--out", str(tmp_path)]):
        script = "import sys\nfrom benchmarks.harness.command import main\nmain(sys.argv[1:])\n"
        script += "assert 'torch' not in sys.modules"
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "")
        assert "smoke" in done.stdout or "cookie:tiny blind:0" in done.stdout


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-m", "benchmarks", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert {suite["name"] for suite in json.loads(done.stdout)} >= {"default", "table-3", "smoke"}


def test_the_list_shows_done_and_absent_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_row(tmp_path / "smoke.jsonl", row_of(SMOKE.cells()[1]))
    line = ["smoke", "--list", "--out", str(tmp_path)]
    assert main([*line, "--json"]) == 0
    assert [entry["state"] for entry in json.loads(capsys.readouterr().out)] == ["to do", "done", *["to do"] * 10]
    assert main([*line, "--data", str(tmp_path), "--only", "*:0"]) == 0
    *shown, count = capsys.readouterr().out.splitlines()
    assert (len(shown), count) == (3, "3 cells")
    assert all("absent" in entry for entry in shown)


@pytest.mark.parametrize(("failed", "code"), [((), 0), (((SMOKE.cells()[0], "it broke"),), 1)])
def test_a_failed_cell_is_listed_and_the_exit_code_is_1(
    failed: tuple[tuple[Cell, str], ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tuple((cell, CategoryFolder("cookie", None, "no folder of this name")) for cell in SMOKE.cells()[1:3])
    outcome = SuiteOutcome("smoke", Path("smoke.jsonl"), (row_of(SMOKE.cells()[3]),), (), failed, absent)
    with mock.patch.object(module, "run_suite", return_value=outcome):
        assert main(["smoke", "--data", "x"]) == code
        shown = capsys.readouterr().out
        assert main(["smoke", "--data", "x", "--json"]) == code
    assert f"1 cells done, 0 done before, {len(failed)} failed, 2 absent" in shown
    assert shown.count("absent  cookie: no folder of this name") == 1
    assert ("it broke" in shown) == bool(failed)
    assert json.loads(capsys.readouterr().out)["done"][0]["key"] == SMOKE.cells()[3].key


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_is_1_if_a_row_does_not_hold(holds: bool, code: int) -> None:
    with mock.patch("benchmarks.harness.verify.verify") as verify:
        verify.return_value = mock.Mock(holds=holds, **{"text.return_value": "text", "to_json.return_value": {}})
        assert main(["smoke", "--verify", "1", "--data", "x", "--quiet"]) == code
    assert verify.call_args == mock.call("smoke", "1", Path("x"), out=Path("benchmarks/results"), progress=False)


def test_tables_are_regenerated_in_a_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--tables"]) == 2
    (tmp_path / "README.md").write_text("<!-- table: smoke -->\n<!-- end table -->\n", encoding="utf-8")
    assert main(["--tables"]) == 0
    assert "No rows yet" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["nonsense"], ["smoke"], ["smoke", "--only", "nothing", "--list"]])
def test_an_error_is_one_line(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
