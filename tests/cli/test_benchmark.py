"""`metalad benchmark`: options, output, exit codes, and resuming after a kill."""

import argparse
import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from metalad.cli import benchmark as module
from metalad.cli.main import main
from metalad.pipelines.benchmark import BenchmarkReport, CellFailure, benchmark
from metalad.pipelines.benchmark.rows import comparable, read_rows
from tests.tiny import TINY_SETTINGS, tiny_category

REQUIRED = ["--methods", "padim", "--data", "x"]


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_benchmark_options(parser)
    return parser.parse_args([*REQUIRED, *arguments])


def test_options_are_the_functions_keywords_with_their_defaults() -> None:
    keywords = {name: entry.default for name, entry in inspect.signature(benchmark).parameters.items()}
    options = vars(parsed())
    assert set(module.KEYWORDS) == set(keywords) - {"progress"} == set(options) - {"listing", "json", "quiet"}
    for name, default in keywords.items():
        if name not in ("methods", "data", "progress"):
            assert (
                options[name] == default or options[name] == Path(str(default)) or (options[name], default) == ([], ())
            )


def test_methods_are_separated_by_commas() -> None:
    assert parsed("--methods", "patchcore, padim,").methods == ["patchcore", "padim"]


@pytest.mark.parametrize(("failures", "code"), [((), 0), ((CellFailure("abc", "x:padim:0", "it broke"),), 1)])
def test_the_table_and_the_failures_are_printed(
    failures: tuple[CellFailure, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = BenchmarkReport((), failures, Path("out"), "the table")
    with mock.patch("metalad.pipelines.benchmark.benchmark", return_value=report) as function:
        assert main(["benchmark", *REQUIRED, "--set", "channels=9", "--quiet"]) == code
        shown = capsys.readouterr().out
        assert main(["benchmark", *REQUIRED, "--json"]) == code
    assert shown.startswith("the table\n")
    assert ("failed  abc x:padim:0: it broke" in shown) == bool(failures)
    assert "out/rows.jsonl" in shown.replace(os.sep, "/")
    assert json.loads(capsys.readouterr().out)["table"] == "the table"
    quiet, loud = (call.kwargs["progress"] for call in function.call_args_list)
    assert (quiet, loud) == (False, True)
    assert function.call_args_list[0].kwargs["settings"] == ["channels=9"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--methods", "nonsense"],
        ["--set", "nonsense=1"],
        ["--only", "nonsense"],
        ["--seeds", "0"],
        ["--data", "missing"],
    ],
)
def test_an_error_is_one_line(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_category(tmp_path / "cookie", train=2, good=1, defective=1)
    line = ["benchmark", "--methods", "padim", "--data", str(data), "--out", str(tmp_path / "out"), *arguments]
    assert main(line) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_list_shows_keys_names_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_category(tmp_path / "cookie", train=2, good=1, defective=1)
    line = ["benchmark", "--methods", "padim,patchcore", "--data", str(data), "--seeds", "3", "--list"]
    line += ["--out", str(tmp_path / "out"), "--only", "*:padim"]
    assert main(line) == 0
    *cells, summary = capsys.readouterr().out.splitlines()
    assert [cell.split()[1:] for cell in cells] == [["to", "do", f"cookie:padim:{seed}"] for seed in range(3)]
    assert summary == "2 methods x 1 categories x 3 seeds = 6 cells, 3 selected"
    assert main([*line, "--json"]) == 0
    assert [(cell["seed"], cell["finished"]) for cell in json.loads(capsys.readouterr().out)] == [
        (seed, False) for seed in range(3)
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_a_killed_benchmark_resumes_and_has_the_rows_of_an_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_category(tmp_path / "cookie", train=6, good=2, defective=2)
    line = ["benchmark", "--methods", "variation_model", "--data", str(data)]
    line += ["--seeds", "3", "--device", "cpu", "--threads", "1", "--set", "image_size=32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def rows(out: Path) -> list[dict[str, object]]:
        values = [comparable(row) for row in read_rows(out / "rows.jsonl")]
        for value in values:
            value.pop("commit")  # the checkout may be edited while this runs
        return values

    killed, calm = tmp_path / "killed", tmp_path / "uninterrupted"
    command = [sys.executable, "-m", "metalad", *line, "--out", str(killed)]
    with subprocess.Popen(command, env=environment, stdout=-3, stderr=-3) as process:
        deadline = time.monotonic() + 120
        while not read_rows(killed / "rows.jsonl"):
            assert time.monotonic() < deadline, "no rows"
            assert process.poll() is None
            time.sleep(0.002)
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGKILL)
    with (killed / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"format": 1, "sui')  # an interrupted write
    assert main([*line, "--out", str(killed)]) == 0
    assert "finished" in capsys.readouterr().err
    assert main([*line, "--out", str(calm)]) == 0
    assert rows(killed) == rows(calm)
    assert len(rows(calm)) == 3
    assert (killed / "table.md").exists()
    assert not list((killed / "runs").iterdir())


def test_settings_and_patterns_reach_the_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_category(tmp_path / "cookie", train=6, good=2, defective=2)
    settings = [part for text in TINY_SETTINGS for part in ("--set", text)]
    line = ["benchmark", "--methods", "metal,variation_model", "--data", str(data), "--out", str(tmp_path / "out")]
    with mock.patch("metalad.pipelines.evaluate.write_html_report"):
        assert main([*line, *settings, "--device", "cpu", "--threads", "1", "--quiet", "--only", "*:variation*"]) == 0
    captured = capsys.readouterr()
    assert "variation_model" in captured.out
    assert captured.err == ""
    (row,) = read_rows(tmp_path / "out" / "rows.jsonl")
    assert row.config["image_size"] == [32, 32]
