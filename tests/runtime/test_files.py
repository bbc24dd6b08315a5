import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.runtime.errors import RunError
from metalad.runtime.files import (
    os_errors_as_run_errors,
    replacing,
    require_writable,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, interruption: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise interruption


def test_write_creates_the_folder_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "grün\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "grün\n".encode()
    write_bytes(tmp_path / "a" / "b.txt", b"\x00\xff")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"\x00\xff"
    assert names(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_interrupted_write_keeps_the_old_content(tmp_path: Path, interruption: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(interruption):
        write_half(path, interruption())
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_new_content_is_invisible_until_complete(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a.txt").exists()
        assert temporary.parent == tmp_path  # renaming across file systems is not atomic
    assert (tmp_path / "a.txt").read_text() == "half"


MESSAGES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk is full; free some space or choose another folder",
    errno.EACCES: "no permission; choose a folder that you may write",
    errno.EROFS: "no permission; choose a folder that you may write",
    errno.EIO: "Input/output error",
}


@pytest.mark.parametrize("number", MESSAGES)
def test_os_errors_become_run_errors_with_a_remedy(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RunError, match=f"cannot write {path}: {MESSAGES[number]}"):
        write_half(path, OSError(number, os.strerror(number)))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_file_in_place_of_a_folder_raises_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt"):
        with pytest.raises(RunError, match="a file exists where a folder is needed, or the reverse"):
            write_text(path, "x")
    with pytest.raises(RunError, match="it is a folder; choose the name of a file"):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


def test_what_cannot_be_written_is_refused_before_the_work_and_nothing_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt"):
        with pytest.raises(RunError, match=f"cannot write {path}: a file exists where a folder is needed"):
            require_writable(path)
    with pytest.raises(RunError, match="it is a folder; choose the name of a file"):
        require_writable(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="it is a named pipe; choose the name of a new file"):
        require_writable(tmp_path / "pipe")
    require_writable(tmp_path / "file")
    require_writable(tmp_path / "new" / "deep" / "a.txt")
    asked = []
    monkeypatch.setattr(os, "access", lambda folder, mode: asked.append((folder, mode)))
    with pytest.raises(RunError, match="no permission; choose a folder that you may write"):
        require_writable(tmp_path / "new" / "deep" / "a.txt")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]
    assert names(tmp_path) == ["file", "folder", "pipe"]


def test_other_errors_are_not_converted() -> None:
    with pytest.raises(ValueError, match="unrelated"), os_errors_as_run_errors(Path("a.txt")):
        raise ValueError("unrelated")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(value=JSON)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("nan")]}])
def test_json_rejects_nan_and_infinity(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []


def test_file_name_of_maximum_length_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "content")
    assert (tmp_path / ("n" * 255)).read_text() == "content"
