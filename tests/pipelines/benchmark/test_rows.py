import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.pipelines.benchmark import rows as module
from metalad.pipelines.benchmark.rows import append_row, comparable, latest, read_rows
from metalad.runtime.errors import RunError
from metalad.runtime.lock import exclusive_lock
from tests.pipelines.benchmark.material import CELLS, row_of

ROWS = [row_of(cell) for cell in CELLS]


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "trial.jsonl"
    assert read_rows(path) == []
    for row in ROWS:
        append_row(path, row)
    assert [comparable(row) for row in read_rows(path)] == [comparable(row) for row in ROWS]
    assert read_rows(path)[0].cost == ROWS[0].cost
    append_row(path, replace(ROWS[0], parameters=1))
    assert latest(read_rows(path))[ROWS[0].key].parameters == 1


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 90))
def test_an_interrupted_write_leaves_the_complete_rows_and_the_next_row_can_be_appended(
    data: st.DataObject, chunk: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(module, "CHUNK", chunk):
        path = Path(folder) / "trial.jsonl"
        lines = [json.dumps(row.to_json()) + "\n" for row in ROWS[:3]]
        content = "".join(lines).encode()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        complete = content[:cut].count(b"\n")
        assert [row.key for row in read_rows(path)] == [row.key for row in ROWS[:complete]]
        append_row(path, ROWS[3])
        assert [row.key for row in read_rows(path)] == [row.key for row in (*ROWS[:complete], ROWS[3])]


@pytest.mark.parametrize("damage", [b"{}", b"nonsense", b"[]", b"", b"\xff"])
def test_an_invalid_line_is_an_error_with_its_number(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trial.jsonl"
    append_row(path, ROWS[0])
    path.write_bytes(path.read_bytes() + damage + b"\n")
    with pytest.raises(RunError, match="line 2: not a result row"):
        read_rows(path)


def test_a_full_disk_leaves_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "trial.jsonl"
    append_row(path, ROWS[0])
    before = path.read_bytes()

    class Full(io.FileIO):
        def write(self, line: Any) -> int:
            return super().write(line[:10])

    with (
        mock.patch.object(Path, "open", lambda self, mode, buffering: Full(self, mode)),  # noqa: ARG005
        pytest.raises(RunError, match="the disk is full"),
    ):
        append_row(path, ROWS[1])
    assert path.read_bytes() == before


def test_two_runs_are_compared_without_their_cost() -> None:
    slower = replace(ROWS[0], cost={"train_seconds": 99.0})
    assert comparable(slower) == comparable(ROWS[0])
    changes: list[dict[str, Any]] = [{"threads": 3}, {"metrics": {}}, {"versions": {}}, {"data": {}}]
    for change in changes:
        assert comparable(replace(ROWS[0], **change)) != comparable(ROWS[0])


def test_a_second_benchmark_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no file locks")
    with (
        exclusive_lock(tmp_path / "runs" / ".lock", "benchmark"),
        pytest.raises(RunError, match="held by another"),
        exclusive_lock(tmp_path / "runs" / ".lock", "benchmark"),
    ):
        pass
    with exclusive_lock(tmp_path / "runs" / ".lock", "benchmark"):
        pass
