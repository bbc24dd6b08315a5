"""The lock of a folder: one holder at a time, who is named; a dead holder does not block."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from metalad.runtime import lock as module
from metalad.runtime.errors import RunError
from metalad.runtime.lock import exclusive_lock

HOLDER = """
import sys, time
from pathlib import Path
from metalad.runtime.lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(60)
"""


def _record(**values: object) -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": "2026-01-02 03:04:05 +0000"} | values)


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""
    monkeypatch.setattr(module, "_lock", lambda _: None)


def test_the_holder_is_named_and_a_killed_one_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError) as caught, exclusive_lock(path, "train"):
            pass
        holder.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    line = str(caught.value)
    assert f"{path} is held by another train (process {holder.pid} on {socket.gethostname()}, since 20" in line
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line)
    assert path.exists()  # the killed process left it
    with exclusive_lock(path, "train"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), exclusive_lock(tmp_path / ".lock", "train"):
            raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_lock_within_one_process_excludes_as_well(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / ".lock", "predict"):
        with pytest.raises(RunError, match="held by another predict"), exclusive_lock(tmp_path / ".lock", "predict"):
            pass
        assert (tmp_path / ".lock").exists()  # the loser deletes nothing


def test_the_record_of_another_machine_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".lock").write_text(_record(host="press-7", pid=12))
    with caplog.at_level(logging.WARNING, "metalad"), exclusive_lock(tmp_path / ".lock", "train"):
        pass
    assert "process 12 on press-7, since 2026-01-02 03:04:05 +0000 did not finish its train" in caplog.text


@pytest.mark.usefixtures("without_locks")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell which processes run")
def test_without_file_locks_the_record_decides(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for holder in (_record(), _record(host="press-7")):
        path.write_text(holder)
        refusal = pytest.raises(RunError, match=r"or delete \.lock there if that process has ended")
        with refusal, exclusive_lock(path, "train"):
            pass
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for holder in (_record(pid=ended.pid), "", "{", "[]", _record(pid=None)):
        path.write_text(holder)
        with exclusive_lock(path, "train"):
            pass
        assert not path.exists()
