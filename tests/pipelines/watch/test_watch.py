"""`metalad.watch`: each image has one result, whatever happens to files and processes."""

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import metalad
from metalad import LoggedPrediction
from metalad.pipelines.watch import folder, run, sources
from metalad.pipelines.watch.log import Log
from metalad.pipelines.watch.scoring import Scorer
from metalad.pipelines.watch.stored import stored_results
from metalad.runtime.errors import ConfigError, DataError, RunError
from tests.pipelines.watch.broker import Broker
from tests.pipelines.watch.images import age, picture, put


def once(model: metalad.Model, inbox: Path, out: Path, **arguments: Any) -> list[LoggedPrediction]:
    """Score what is there."""
    return list(metalad.watch(model, inbox, out, once=True, **{"settle": 0.0, **arguments}))


def names(results: list[LoggedPrediction]) -> list[str]:
    return [Path(str(result.path)).name for result in results]


@contextlib.contextmanager
def watching(
    model: metalad.Model, inbox: Path, out: Path, **arguments: Any
) -> Iterator[tuple[list[LoggedPrediction], Any]]:
    """Watch in a thread; yield the list that gets the results, and a function that waits for a number of them."""
    stop, results = threading.Event(), list[LoggedPrediction]()

    def collect() -> None:
        results.extend([])
        for result in metalad.watch(model, inbox, out, stop=stop, **{"settle": 0.1, **arguments}):
            results.append(result)

    thread = threading.Thread(target=collect)
    thread.start()

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 15
        while len(results) < count:
            assert time.monotonic() < deadline, results
            assert thread.is_alive()
            time.sleep(0.02)

    try:
        yield results, wait_for
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()


# What is scored, and how often


def test_with_once_an_unreadable_folder_is_an_error_after_all_other_images(
    model: metalad.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, closed = tmp_path / "in", tmp_path / "in" / "closed"
    put(inbox / "a.png")
    put(closed / "b.png")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    watched = metalad.watch(model, inbox, tmp_path / "out", once=True, settle=0.0)
    assert names([next(watched)]) == ["a.png"]
    with pytest.raises(DataError, match=rf"cannot read {re.escape(str(closed))}; images there are not scored"):
        next(watched)


def test_each_image_is_scored_once_and_results_equal_those_of_predict(
    model: metalad.Model, inbox: Path, tmp_path: Path
) -> None:
    put(inbox / "a.png")
    put(inbox / "line/b.png", good=False)
    (inbox / "notes.txt").write_text("no image")
    put(inbox / ".hidden.png")
    results = once(model, inbox, tmp_path / "out")
    assert {result.path: result.is_anomalous for result in results} == {
        inbox / "a.png": False,
        inbox / "line/b.png": True,
    }
    assert once(model, inbox, tmp_path / "out") == []
    assert list(stored_results(tmp_path / "out")) == results
    predicted = list(metalad.predict(model, [inbox], tmp_path / "predicted"))
    for result, expected in zip(sorted(results, key=lambda r: str(r.path)), predicted, strict=True):
        assert (result.path, result.score, result.regions) == (expected.path, expected.score, expected.regions)
        assert result.overlay is not None
        assert expected.overlay is not None
        assert result.overlay.read_bytes() == expected.overlay.read_bytes()
        assert result.map is not None
        assert expected.map is not None
        assert result.map.read_bytes() == expected.map.read_bytes()


def test_an_overwritten_file_is_scored_again_and_a_touched_one_is_not(
    model: metalad.Model, inbox: Path, tmp_path: Path
) -> None:
    path, out = put(inbox / "a.png"), tmp_path / "out"
    (first,) = once(model, inbox, out)
    age(path, 100)
    assert once(model, inbox, out) == []
    put(path, good=False)
    (second,) = once(model, inbox, out)
    assert (first.path, first.is_anomalous, second.path, second.is_anomalous) == (path, False, path, True)
    assert first.overlay != second.overlay
    assert first.overlay is not None
    assert first.overlay.exists()


def test_an_image_of_the_same_size_and_time_is_seen_as_another(
    model: metalad.Model, inbox: Path, tmp_path: Path
) -> None:
    """Such as a bitmap that is copied with its time; the time of the last change of status differs."""
    path, out = inbox / "a.png", tmp_path / "out"
    content, other = picture(), picture(good=False)
    size = max(len(content), len(other)) + 10
    put(path, content=content.ljust(size, b"\0"))
    once(model, inbox, out)
    times = path.stat().st_mtime_ns
    path.write_bytes(other.ljust(size, b"\0"))
    os.utime(path, ns=(times, times))
    assert [result.is_anomalous for result in once(model, inbox, out)] == [True]


def test_a_renamed_file_is_not_scored_again_but_a_copy_is(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    path, out = put(inbox / "a.png"), tmp_path / "out"
    once(model, inbox, out)
    (inbox / "archive").mkdir()
    path.rename(inbox / "archive/a.png")
    assert once(model, inbox, out) == []
    shutil.copy(inbox / "archive/a.png", inbox / "b.png")
    assert names(once(model, inbox, out)) == ["b.png"]


def test_half_written_files_are_waited_for(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    content, path = picture(good=False), inbox / "a.png"
    with watching(model, inbox, tmp_path / "out") as (results, wait_for):
        path.write_bytes(content[:100])  # stays longer than it takes to settle
        time.sleep(0.4)
        assert results == []
        with path.open("ab") as file:
            file.write(content[100:])
        wait_for(1)
    (result,) = results
    assert (result.error, result.is_anomalous) == (None, True)


def test_a_truncated_file_is_recorded_as_unreadable_when_patience_ends_and_scored_when_it_is_completed(
    model: metalad.Model, inbox: Path, tmp_path: Path
) -> None:
    content, out = picture(), tmp_path / "out"
    put(inbox / "a.png", content=content[:100])
    put(inbox / "b.png", content=b"text")
    results = once(model, inbox, out, patience=0.2)
    assert names(results) == ["a.png", "b.png"]
    assert [result.score for result in results] == [None, None]
    assert "truncated" in str(results[0].error)
    assert once(model, inbox, out, patience=0.2) == []
    put(inbox / "a.png", content=content)
    (result,) = once(model, inbox, out)
    assert (result.error, result.is_anomalous) == (None, False)


def test_images_that_arrive_are_scored_also_in_new_and_moved_folders(
    model: metalad.Model, inbox: Path, tmp_path: Path
) -> None:
    put(inbox / "early.png")
    put(tmp_path / "elsewhere/deep/c.png")
    with watching(model, inbox, tmp_path / "out") as (results, wait_for):
        wait_for(1)
        put(inbox / "a.png")
        put(inbox / "new/b.png")
        (tmp_path / "elsewhere").rename(inbox / "moved")
        wait_for(4)
    assert names(results)[0] == "early.png"
    assert sorted(names(results)) == ["a.png", "b.png", "c.png", "early.png"]


def test_polling_finds_images_without_notices(
    model: metalad.Model, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "Changes", None)
    with watching(model, inbox, tmp_path / "out", poll=0.05) as (results, wait_for):
        put(inbox / "a.png")
        wait_for(1)
        put(inbox / "b.png")
        wait_for(2)
    assert names(results) == ["a.png", "b.png"]


def test_results_in_the_watched_folder_are_not_scored(model: metalad.Model, inbox: Path) -> None:
    put(inbox / "a.png", good=False)
    for _ in range(2):
        once(model, inbox, inbox / "out", move=inbox)
    assert (inbox / "ng/a.png").exists()
    assert len(list(stored_results(inbox / "out"))) == 1


def test_the_output_folder_can_be_the_watched_one_or_contain_it(model: metalad.Model, tmp_path: Path) -> None:
    for out in (tmp_path / "same", tmp_path / "outer"):
        inbox = out if out.name == "same" else out / "inbox"
        put(inbox / "a.png")
        with watching(model, inbox, out, move=out) as (results, wait_for):
            wait_for(1)
            put(inbox / "b.png", good=False)
            wait_for(2)
            time.sleep(0.3)
        assert names(results) == ["a.png", "b.png"]
        assert (out / "ng/b.png").exists()


def test_a_folder_that_cannot_be_read_for_a_while_is_tried_again(
    model: metalad.Model, inbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a network drive that is disconnected, and connected again."""
    put(inbox / "a.png")
    with watching(model, inbox, tmp_path / "out", poll=0.05) as (results, wait_for):
        wait_for(1)
        inbox.rename(tmp_path / "away")
        time.sleep(0.3)
        (tmp_path / "away").rename(inbox)
        put(inbox / "b.png")
        wait_for(2)
    assert names(results) == ["a.png", "b.png"]
    assert "cannot read the folder" in caplog.text


@pytest.mark.parametrize("moved_away", [False, True])
def test_a_folder_that_is_replaced_is_watched_again(
    model: metalad.Model, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved_away: bool
) -> None:
    monkeypatch.setattr(folder, "RESTART_SECONDS", 0.2)
    monkeypatch.setattr(sources, "SCAN_SECONDS", 1e6)  # notices alone
    put(inbox / "a.png")
    with watching(model, inbox, tmp_path / "out") as (results, wait_for):
        wait_for(1)
        if moved_away:
            inbox.rename(tmp_path / "away")
        else:
            shutil.rmtree(inbox)
        inbox.mkdir()
        put(inbox / "b.png")
        wait_for(2)
        put(inbox / "c.png")
        wait_for(3)
    assert names(results) == ["a.png", "b.png", "c.png"]


def test_images_that_cannot_be_read_are_counted_once_by_suffix(
    model: metalad.Model, inbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(inbox / "a.png")
    (inbox / "deeper").mkdir()
    for name in ("b.gif", "deeper/c.GIF", "d.cr2", "e.txt", "f.png.part", ".g.gif", "h"):
        (inbox / name).write_bytes(b"x")
    with watching(model, inbox, tmp_path / "out", poll=0.05) as (_, wait_for):
        wait_for(1)
        (inbox / "later.svg").write_bytes(b"x")
        (inbox / "later.gif").write_bytes(b"x")
        time.sleep(0.3)
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert lines == [f"{inbox}: 3 files left out: 2 .gif, 1 .cr2", f"{inbox}: 1 file left out: 1 .svg"]


# Starts and stops


def test_new_only_skips_what_is_there_but_not_what_arrived_before_a_crash(
    model: metalad.Model, inbox: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    put(inbox / "old.png")
    with watching(model, inbox, out, new_only=True) as (results, wait_for):
        time.sleep(0.2)
        put(inbox / "new.png")
        wait_for(1)
    assert names(results) == ["new.png"]
    log = Log(out / "results.sqlite")
    log.begin()  # as after a crash
    log.close()
    put(inbox / "before the restart.png")
    with watching(model, inbox, out, new_only=True) as (results, wait_for):
        wait_for(1)
    assert names(results) == ["before the restart.png"]
    put(inbox / "while it was stopped.png")
    with watching(model, inbox, out, new_only=True) as (results, wait_for):
        time.sleep(0.3)
    assert results == []


def test_closing_stores_the_images_in_work(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    for number in range(6):
        put(inbox / f"{number}.png")
    results = metalad.watch(model, inbox, tmp_path / "out", settle=0.0)
    first = next(results)
    results.close()
    stored = list(stored_results(tmp_path / "out"))
    assert stored[0] == first
    left = once(model, inbox, tmp_path / "out")
    assert sorted(names(stored + left)) == [f"{number}.png" for number in range(6)]


def test_an_image_whose_result_was_not_stored_is_scored_again(
    model: metalad.Model, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        put(inbox / f"{number}.png")
    add, calls = Log.add, []

    def full(self: Log, *args: Any, **keywords: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise RunError("the disk is full")
        return add(self, *args, **keywords)

    monkeypatch.setattr(Log, "add", full)
    with pytest.raises(RunError, match="full"):
        once(model, inbox, tmp_path / "out")
    monkeypatch.undo()
    once(model, inbox, tmp_path / "out")
    assert sorted(names(list(stored_results(tmp_path / "out")))) == ["0.png", "1.png", "2.png"]


def test_a_limit_stops_after_so_many_results(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    for number in range(5):
        put(inbox / f"{number}.png")
    assert len(list(metalad.watch(model, inbox, tmp_path / "out", settle=0.0, limit=3))) == 3
    assert len(once(model, inbox, tmp_path / "out")) == 2


def test_two_processes_cannot_use_one_output_folder(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    put(inbox / "a.png")
    first = metalad.watch(model, inbox, tmp_path / "out", settle=0.0)
    next(first)
    with pytest.raises(RunError, match="held by another watch"):
        once(model, inbox, tmp_path / "out")
    first.close()


# Pictures, moves, pages


def test_pictures_of_anomalous_images_only(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    put(inbox / "a.png")
    put(inbox / "b.png", good=False)
    good, bad = sorted(once(model, inbox, tmp_path / "out", only_anomalous=True), key=lambda r: str(r.path))
    assert (good.map, good.overlay) == (None, None)
    assert bad.overlay is not None
    assert bad.overlay.name.startswith("b-")
    assert [path.stem for path in (tmp_path / "out").rglob("*.*g")] == [bad.overlay.stem] * 2


def test_moved_files_are_sorted_and_the_same_file_can_arrive_again(
    model: metalad.Model, inbox: Path, tmp_path: Path
) -> None:
    good, bad, out = picture(), picture(good=False), tmp_path / "out"
    for round in (1, 2):
        put(inbox / "line/a.png", content=good)
        put(inbox / "line/b.png", content=bad)
        results = once(model, inbox, out, move=tmp_path / "sorted")
        assert len(results) == 2
        suffix = "" if round == 1 else "-2"
        moved = {tmp_path / f"sorted/ok/line/a{suffix}.png", tmp_path / f"sorted/ng/line/b{suffix}.png"}
        assert {result.moved_to for result in results} == moved
        assert {result.moved_to for result in stored_results(out)} >= moved
    assert [path for path in inbox.rglob("*") if path.is_file()] == []
    assert len(list(stored_results(out))) == 4


def test_an_unreadable_file_is_not_moved(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    put(inbox / "a.png", content=b"text")
    (result,) = once(model, inbox, tmp_path / "out", move=tmp_path / "sorted", patience=0.0)
    assert (result.moved_to, result.error is None) == (None, False)
    assert (inbox / "a.png").exists()


def test_a_file_with_several_pages_has_a_result_for_each(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    import io

    from PIL import Image

    first, second = (Image.open(io.BytesIO(picture(good=good))) for good in (True, False))
    first.save(inbox / "a.tif", save_all=True, append_images=[second])
    results = once(model, inbox, tmp_path / "out", move=tmp_path / "sorted")
    assert names(results) == ["a.tif[1]", "a.tif[2]"]
    assert [result.is_anomalous for result in results] == [False, True]
    assert {result.moved_to for result in results} == {tmp_path / "sorted/ng/a.tif"}
    assert len({result.overlay for result in results}) == 2


def test_a_command_runs_for_anomalous_images_with_the_new_path(
    model: metalad.Model, inbox: Path, tmp_path: Path
) -> None:
    put(inbox / "a.png")
    put(inbox / "b.png", good=False)
    alarm = f"sh -c 'echo $0 >> {tmp_path}/alarms'"
    once(model, inbox, tmp_path / "out", on_anomalous=alarm, move=tmp_path / "sorted")
    assert (tmp_path / "alarms").read_text() == f"{tmp_path}/sorted/ng/b.png\n"


def test_results_that_no_broker_takes_are_an_error_at_the_end_and_published_later(
    model: metalad.Model, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "PUBLISH_SECONDS", 0.3)
    put(inbox / "a.png")
    away = Broker()
    away.close()
    url = f"mqtt://127.0.0.1:{away.port}/t"
    results = list[LoggedPrediction]()
    with pytest.raises(RunError, match=f"1 results are not published, because {url} does not acknowledge them"):
        results.extend(metalad.watch(model, inbox, tmp_path / "out", once=True, settle=0.0, mqtt=url))
    assert "not yet published" not in caplog.text  # said once
    assert names(list(stored_results(tmp_path / "out"))) == ["a.png"]
    broker = Broker()
    assert once(model, inbox, tmp_path / "out", mqtt=f"mqtt://127.0.0.1:{broker.port}/t") == []
    assert [Path(payload["path"]).name for _, payload in broker.messages] == ["a.png"]
    broker.close()


def test_a_request_to_stop_is_no_error_without_a_broker(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    away = Broker()
    away.close()
    put(inbox / "a.png")
    with watching(model, inbox, tmp_path / "out", mqtt=f"mqtt://127.0.0.1:{away.port}/t") as (results, wait_for):
        wait_for(1)
    assert names(results) == ["a.png"]


def test_long_names_of_pictures_are_shortened(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    put(inbox / f"{'x' * 240}.png")
    (result,) = once(model, inbox, tmp_path / "out")
    assert result.overlay is not None
    assert result.overlay.exists()


# Wrong arguments


def test_impossible_arguments_are_errors_of_the_call(model: metalad.Model, inbox: Path, tmp_path: Path) -> None:
    for arguments, text in (
        ({"settle": -1.0}, "settle is -1.0"),
        ({"patience": float("nan")}, "patience is nan"),
        ({"poll": 0.0}, "poll is 0.0"),
        ({"every": 0}, "every is 0"),
        ({"every": 2}, "every is for frames"),
        ({"limit": 0}, "limit is 0"),
        ({"once": True, "new_only": True}, "exclude each other"),
        ({"mqtt": "host"}, "mqtt://"),
        ({"threshold": -1.0}, "threshold is -1.0"),
    ):
        with pytest.raises(ConfigError, match=text):
            metalad.watch(model, inbox, tmp_path / "out", **arguments)
    with pytest.raises(DataError, match="no folder"):
        metalad.watch(model, tmp_path / "missing", tmp_path / "out")
    with pytest.raises(ConfigError, match="has no end"):
        metalad.watch(model, "camera:0", tmp_path / "out", once=True)
    assert not (tmp_path / "out").exists()


def test_a_bug_in_scoring_is_not_hidden(
    model: metalad.Model, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(inbox / "a.png")

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Scorer, "score_file", broken)
    with pytest.raises(ZeroDivisionError):
        once(model, inbox, tmp_path / "out")
    assert sources.SCAN_SECONDS == 60
