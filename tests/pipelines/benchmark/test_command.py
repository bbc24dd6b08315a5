import inspect
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from metalad.cli import main as cli
from metalad.pipelines.benchmark import Cell, benchmark
from metalad.pipelines.benchmark import command as module
from metalad.pipelines.benchmark.places import Place
from metalad.pipelines.benchmark.rows import append_row
from metalad.pipelines.benchmark.run import Outcome
from metalad.pipelines.benchmark.suites import suite_named
from tests.pipelines.benchmark.material import row_of

SMOKE = suite_named("smoke")


def test_options_are_the_functions_keywords_with_their_defaults() -> None:
    keywords = {name: entry.default for name, entry in inspect.signature(benchmark).parameters.items()}
    parsed = vars(cli.build_parser().parse_args(["benchmark"]))
    options = {name: value for name, value in parsed.items() if name not in cli.NOT_PASSED_ON}
    assert set(options) == set(keywords) - {"progress"}
    defaults = {name: value for name, value in keywords.items() if name not in ("suite", "progress")}
    assert {name: tuple(options[name]) if name == "only" else options[name] for name in defaults} == defaults


def test_lists_need_no_torch(tmp_path: Path) -> None:
    for words in (["benchmark"], ["benchmark", "smoke", "--list", "--out", str(tmp_path)]):
        script = "import sys\nfrom metalad.cli.main import main\nmain(sys.argv[1:])\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "smoke" in done.stdout or "cookie:tiny blind:0" in done.stdout


def test_the_list_says_what_is_done_and_what_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_row(tmp_path / "smoke.jsonl", row_of(SMOKE.cells()[1]))
    line = ["benchmark", "smoke", "--list", "--out", str(tmp_path)]
    assert cli.main([*line, "--json"]) == 0
    assert [entry["state"] for entry in json.loads(capsys.readouterr().out)] == ["to do", "done", *["to do"] * 10]
    assert cli.main([*line, "--data", str(tmp_path), "--only", "*:0"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert all("absent" in entry for entry in shown)


@pytest.mark.parametrize(("failed", "code"), [((), 0), (((SMOKE.cells()[0], "it broke"),), 1)])
def test_a_failed_cell_is_told_and_makes_the_exit_code_1(
    failed: tuple[tuple[Cell, str], ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tuple((cell, Place("cookie", None, "no folder of this name")) for cell in SMOKE.cells()[1:3])
    outcome = Outcome("smoke", Path("smoke.jsonl"), (row_of(SMOKE.cells()[3]),), (), failed, absent)
    with mock.patch.object(module, "benchmark", return_value=outcome):
        assert cli.main(["benchmark", "smoke", "--data", "x"]) == code
        shown = capsys.readouterr().out
        assert cli.main(["benchmark", "smoke", "--data", "x", "--json"]) == code
    assert f"1 cells done, 0 done before, {len(failed)} failed, 2 absent" in shown
    assert shown.count("absent  cookie: no folder of this name") == 1
    assert ("it broke" in shown) == bool(failed)
    assert json.loads(capsys.readouterr().out)["done"][0]["key"] == SMOKE.cells()[3].key


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 1)])
def test_a_row_that_does_not_hold_makes_the_exit_code_1(holds: bool, code: int) -> None:
    with mock.patch("metalad.pipelines.benchmark.verify.verify") as verify:
        verify.return_value = mock.Mock(holds=holds, **{"text.return_value": "text", "to_json.return_value": {}})
        assert cli.main(["benchmark", "smoke", "--verify", "1", "--data", "x", "--quiet"]) == code
    assert verify.call_args.kwargs == {
        "row": "1",
        "suite": "smoke",
        "data": Path("x"),
        "out": Path("benchmarks/results"),
        "progress": False,
    }


def test_tables_are_renewed_in_a_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", "--tables"]) == 2
    (tmp_path / "README.md").write_text("<!-- table: smoke -->\n<!-- end table -->\n", encoding="utf-8")
    assert cli.main(["benchmark", "--tables"]) == 0
    assert "No rows yet" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [["nonsense"], ["smoke"], ["smoke", "--only", "nothing", "--list"]])
def test_a_mistake_is_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", *words, "--out", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
