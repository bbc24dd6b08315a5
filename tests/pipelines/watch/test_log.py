"""The log: what a process that is killed has stored."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import metalad
from metalad.pipelines.watch.log import Log, Stamp
from metalad.results.prediction import SavedPrediction
from metalad.results.regions import Region
from metalad.runtime.errors import RunError

A = Stamp(100, 1, 1, 7)


def prediction(path: str, score: float = 2.0) -> SavedPrediction:
    regions = (Region((0, 0, 2, 2), 4, 2.5, ((0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0))),)
    return SavedPrediction(Path(path), score, 1.0, score > 1, regions, None, Path("o.jpg"), None, (8, 9), ("dark",))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "results.sqlite")


def test_results_are_read_as_they_were_stored(log: Log) -> None:
    (first,) = log.add(("a.png", A), "aa", [prediction("in/a.png")], model="m")
    error = SavedPrediction(Path("in/b.png"), None, 1.0, None, (), None, None, "damaged")
    (second,) = log.add(("b.png", A), "bb", [error], model=None)
    assert list(log.results()) == [first, second]
    assert (first.id, second.id, second.error) == (1, 2, "damaged")
    assert first.to_dict()["sha256"] == "aa"
    assert list(log.results(first=2)) == [second]
    log.close()


def test_a_file_name_that_is_not_unicode_is_kept(log: Log) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    log.add((name, A), "aa", [prediction(f"in/{name}")], model=None, move="ok")
    (stored,) = log.results()
    assert os.fsencode(str(stored.path)) == b"in/caf\xe9.png"
    (move,) = log.moves()
    assert move.path == name
    assert log.stamp(name) == (A, "aa")
    log.close()


def test_a_failed_transaction_stores_nothing(log: Log) -> None:
    bad = prediction("in/a.png", float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        log.add(("a.png", A), "aa", [prediction("in/a.png"), bad], model=None)
    assert list(log.results()) == []
    assert log.stamp("a.png") is None
    log.add(("a.png", A), "aa", [prediction("in/a.png")], model=None)  # the log can still be used
    log.close()


def test_a_command_and_a_message_wait_until_the_file_is_moved(log: Log) -> None:
    log.add(("a.png", A), "aa", [prediction("in/a.png")], model=None, move="ng", outboxes=("command", "mqtt"))
    log.add(("b.png", A), "bb", [prediction("in/b.png", 0.5)], model=None, move="ok", outboxes=("command", "mqtt"))
    assert log.pending("command") == log.pending("mqtt") == []
    assert (log.count_pending("command"), log.count_pending("mqtt")) == (1, 2)
    first, second = log.moves()
    log.moved(first, Path("ng/a.png"))
    (result,) = log.pending("command")
    assert (result.id, result.moved_to) == (1, Path("ng/a.png"))
    log.not_moved(second)
    assert [result.id for result in log.pending("mqtt", limit=5)] == [1, 2]
    assert [result.id for result in log.pending("mqtt", after=1, limit=5)] == [2]
    log.finish("mqtt", 1)
    assert [result.id for result in log.pending("mqtt", limit=5)] == [2]
    assert log.stamp("a.png") is None
    assert log.stamp("b.png") == (A, "bb")
    log.close()


def test_only_a_file_with_the_same_number_and_no_old_name_is_a_renamed_one(log: Log) -> None:
    log.add(("a.png", A), "aa", [prediction("in/a.png")], model=None)
    copy = Stamp(100, 1, 1, 8)
    assert not log.renamed("b.png", copy, "aa", lambda _: False)
    assert not log.renamed("b.png", A, "aa", lambda _: True)
    assert not log.renamed("b.png", A, "bb", lambda _: False)
    assert log.renamed("b.png", A, "aa", lambda _: False)
    assert (log.stamp("a.png"), log.stamp("b.png")) == (None, (A, "aa"))
    log.skip([("old.png", Stamp(9, 9, 9, 9))])
    assert log.renamed("archive/old.png", Stamp(9, 9, 10, 9), "cc", lambda _: False)
    log.close()


def test_a_killed_process_leaves_what_it_has_stored(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from metalad.pipelines.watch.log import Log, Stamp
from metalad.results.prediction import SavedPrediction
log = Log(Path(sys.argv[1]))
log.begin()
for number in range(5):
    saved = SavedPrediction(Path(f"{number}.png"), 0.5, 1.0, False, (), None, None, None, (8, 8))
    log.add((f"{number}.png", Stamp(1, 1, 1, 1)), "aa", [saved], model=None)
os.kill(os.getpid(), 9)
"""
    file = tmp_path / "results.sqlite"
    environment = {**os.environ, "PYTHONPATH": str(Path(metalad.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code, str(file)], env=environment, check=False).returncode == -9
    log = Log(file)
    assert [str(result.path) for result in log.results()] == [f"{number}.png" for number in range(5)]
    assert log.is_running
    log.end()
    assert not log.is_running
    log.close()


def test_the_log_is_durable_and_readable_meanwhile(log: Log, tmp_path: Path) -> None:
    (mode,) = log._database.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = log._database.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)
    log.add(("a.png", A), "aa", [prediction("in/a.png")], model="m")
    reader = sqlite3.connect(tmp_path / "results.sqlite")
    query = "SELECT id, path, file, sha256, model, score, threshold, is_anomalous, error FROM results"
    assert reader.execute(query).fetchall() == [(1, "in/a.png", "a.png", "aa", "m", 2.0, 1.0, 1, None)]
    reader.close()
    log.close()


def test_a_damaged_or_newer_log_is_refused_in_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"not a database, but a text of some length" * 100)
    with pytest.raises(RunError, match=r"cannot use the log .*damaged"):
        Log(damaged)
    newer = tmp_path / "newer.sqlite"
    database = sqlite3.connect(newer)
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(RunError, match="newer metalad"):
        Log(newer)
