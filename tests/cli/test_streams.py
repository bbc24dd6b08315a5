"""Standard streams that are closed or broken: the exit code and the results are the usual ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metalad.cli.main import main
from metalad.cli.terminal import PIPE_CLOSED
from tests.tiny import tiny_category

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")

CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"]


def _shell(redirection: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run metalad with a redirection of the shell, such as `2>&-`."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "metalad", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.mark.parametrize("redirection", CLOSED)
def test_a_closed_stream_does_not_change_the_exit_code(redirection: str, tmp_path: Path) -> None:
    assert _shell(redirection, "methods").returncode == 0
    assert _shell(redirection, "datasets", "--data", tmp_path / "missing").returncode == 2
    assert _shell(redirection, "train").returncode == 2  # argparse prints its usage


def test_all_streams_closed_gives_the_results_of_open_ones(tmp_path: Path) -> None:
    data = tiny_category(tmp_path / "data", good=2)
    train = ("train", data, "--method", "variation_model", "--set", "image_size=32", "--set", "smoothing_sigma=1")
    processes = ("--workers", "1")  # child processes inherit the streams

    def predict(run: Path) -> tuple[object, ...]:
        return "predict", run, data / "test/good", "--out", run / "results", *processes

    for line in ((*train, "--out", tmp_path / "open"), predict(tmp_path / "open")):
        assert main([str(argument) for argument in line]) == 0
    for line in ((*train, "--out", tmp_path / "closed"), predict(tmp_path / "closed")):
        assert _shell("<&- >&- 2>&-", *line).returncode == 0
    lines = [(tmp_path / name / "results/predictions.jsonl").read_text().splitlines() for name in ("open", "closed")]
    scores = [[json.loads(line)["score"] for line in found] for found in lines]
    assert len(scores[0]) == 2
    assert scores[0] == scores[1]
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("open", "closed")]
    assert models[0] == models[1]  # no library wrote its messages into an open file


def _broken_pipe() -> int:
    """Return the end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_broken_stderr_does_not_change_the_exit_code(tmp_path: Path) -> None:
    for arguments, code in ((["methods"], 0), (["predict", str(tmp_path / "no"), "x", "--out", "y"], 2)):
        writer = _broken_pipe()
        command = [sys.executable, "-m", "metalad", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, check=False)
        os.close(writer)
        assert done.returncode == code


def test_a_broken_stdout_ends_the_run_whatever_stderr_is() -> None:
    writer = _broken_pipe()
    done = subprocess.run([sys.executable, "-m", "metalad", "methods"], stdout=writer, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == PIPE_CLOSED
