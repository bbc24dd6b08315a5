"""The smoke suite, killed twice with SIGKILL and resumed: each cell runs once, with the same rows."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.suites import suite_named
from metalad.pipelines.benchmark.rows import comparable, latest, read_rows
from tests.pipelines.benchmark.material import put_category

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

# Torch is imported once; each run is a forked process. HTML reports are not written.
SERVER = """
import json, os, sys
import torch._dynamo  # Adam would import it in each run
import metalad.pipelines.benchmark.execution, metalad.pipelines.evaluate
metalad.pipelines.evaluate.write_html_report = lambda *_: None
from benchmarks.harness.command import main
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Server:
    """Starts runs of the smoke suite; a run can be killed after a number of rows."""

    def __init__(self, process: "subprocess.Popen[str]", data: Path) -> None:
        self._process, self._data = process, data

    def run(self, out: Path, kill_at: int | None = None) -> int:
        assert self._process.stdin is not None
        line = ["smoke", "--data", str(self._data), "--out", str(out), "--device", "cpu"]
        self._process.stdin.write(json.dumps([*line, "--threads", "1", "--quiet"]) + "\n")
        self._process.stdin.flush()
        child = self._answer()
        if kill_at is not None:
            deadline = time.monotonic() + 120
            while len(read_rows(out / "smoke.jsonl")) < kill_at:
                assert time.monotonic() < deadline, "no rows"
                time.sleep(0.002)
            time.sleep(0.01)  # into the next cell
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(self._answer())

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    data = put_category(tmp_path / "data" / "cookie", good=1, defective=1).parent
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        yield Server(process, data)
        with contextlib.suppress(OSError):
            process.kill()


def test_a_suite_killed_twice_has_the_rows_of_an_uninterrupted_one(server: Server, tmp_path: Path) -> None:
    assert server.run(tmp_path / "uninterrupted") == 0
    assert server.run(tmp_path / "killed", kill_at=2) == -signal.SIGKILL
    with (tmp_path / "killed" / "smoke.jsonl").open("a") as file:
        file.write('{"format": 1, "suite": "smo')  # an interrupted write
    assert server.run(tmp_path / "killed", kill_at=4) == -signal.SIGKILL
    assert server.run(tmp_path / "killed") == 0
    uninterrupted, killed = (read_rows(tmp_path / folder / "smoke.jsonl") for folder in ("uninterrupted", "killed"))
    wanted = [cell.key for cell in suite_named("smoke").cells()]
    assert [row.key for row in uninterrupted] == [row.key for row in killed] == wanted

    def same(row: Any) -> dict[str, Any]:
        values = comparable(row)
        values.pop("commit")  # the checkout may be edited while this runs
        return values

    assert [same(row) for row in killed] == [same(row) for row in uninterrupted]
    assert {row.metrics["raw"]["model"]["image_auroc"] is None for row in uninterrupted} == {False}
    assert len({json.dumps(same(row)["metrics"]) for row in latest(uninterrupted).values()}) == 12, "cells must differ"
    assert not list((tmp_path / "killed" / "runs" / "smoke").iterdir())
