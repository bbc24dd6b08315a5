"""A stopped or killed prediction is resumed to the results of an uninterrupted one, and no image is scored twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import UInt8

from metalad.data.images import read_image
from metalad.data.walking import JOURNAL
from metalad.pipelines.predict import predict, saving
from metalad.pipelines.predict.journal import Journal, ShardFile, shard_size, stored_lines
from metalad.runtime.errors import RunError
from metalad.runtime.lock import exclusive_lock
from tests.noise import draw_many, files_in, noise_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image is read."""
    counted: Counter[str] = Counter()

    def counting(path: Path, *_: object) -> UInt8[np.ndarray, "height width 3"]:
        counted[path.name] += 1
        return read_image(path)

    monkeypatch.setattr(saving, "read_image", counting)
    return counted


def stopped(run: Path, folder: Path, out: Path, after: int) -> None:
    results = predict(run, [folder], out, batch_size=2)
    for _ in range(after):
        next(results)
    results.close()


# In one process


@pytest.mark.parametrize("after", [1, 5, 8])
def test_a_stopped_prediction_is_resumed_with_the_remaining_images(
    run: Path, tmp_path: Path, reads: Counter[str], after: int
) -> None:
    folder, out = draw_many(tmp_path / "in", 30), tmp_path / "out"
    (folder / "003.png").write_text("no image")
    uninterrupted = list(predict(run, [folder], out, batch_size=2))
    shutil.rmtree(out)
    stopped(run, folder, out, after)
    assert not (out / "predictions.jsonl").exists()
    reads.clear()
    draw_many(folder / "later", 2)  # the list of images is that of the start
    again = list(predict(run, [folder], out, batch_size=2, resume=True))
    assert again == uninterrupted
    assert reads == {f"{index:03}.png": 1 for index in range(after, 30)}
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [result.to_dict() for result in uninterrupted]


def test_a_finished_prediction_is_read_again_and_no_image_is_scored(
    run: Path, tmp_path: Path, reads: Counter[str]
) -> None:
    folder, out = draw_many(tmp_path / "in", 3), tmp_path / "out"
    (folder / "001.png").write_text("no image")
    uninterrupted = list(predict(run, [folder], out))
    reads.clear()
    assert list(predict(run, [folder], out, resume=True)) == uninterrupted
    assert not reads
    assert [path.name for path in (out / JOURNAL).iterdir() if path.name != "lock"] == ["plan.json"]
    draw_many(folder, 4)
    assert len(list(predict(run, [folder], out, overwrite=True))) == 4  # it starts again


def test_a_prediction_killed_after_its_results_were_written_is_finished(
    run: Path, tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = draw_many(tmp_path / "in", 3), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "finish", lambda _: None)
        uninterrupted = list(predict(run, [folder], out))
    reads.clear()
    assert list(predict(run, [folder], out, resume=True)) == uninterrupted
    assert not reads
    assert not (out / JOURNAL / "sources.jsonl").exists()


def test_resuming_in_an_empty_folder_starts_a_prediction(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 2)
    assert len(list(predict(run, [folder], tmp_path / "out", resume=True))) == 2


def test_a_prediction_is_not_resumed_with_other_settings(run: Path, tmp_path: Path) -> None:
    folder, out = draw_many(tmp_path / "in", 12), tmp_path / "out"
    stopped(run, folder, out, 1)
    with pytest.raises(RunError, match="was started with scoring"):
        list(predict(run, [folder], out, batch_size=2, scoring="raw", resume=True))
    with pytest.raises(RunError, match="was started with batch_size 2, now it is 3"):
        list(predict(run, [folder], out, batch_size=3, resume=True))
    with pytest.raises(RunError, match="was started with paths"):
        list(predict(run, [tmp_path], out, batch_size=2, resume=True))
    (out / JOURNAL / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json is damaged; delete it to start again"):
        predict(run, [folder], out, batch_size=2, resume=True)


def test_two_predictions_cannot_write_into_one_folder(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no file locks")
    folder, out = draw_many(tmp_path / "in", 2), tmp_path / "out"
    with exclusive_lock(out / JOURNAL / "lock", "predict"), pytest.raises(RunError, match="held by another predict"):
        list(predict(run, [folder], out))


def test_an_image_with_a_truncated_line_is_scored_again(run: Path, tmp_path: Path, reads: Counter[str]) -> None:
    folder, out = draw_many(tmp_path / "in", 12), tmp_path / "out"
    stopped(run, folder, out, 3)
    uninterrupted = list(predict(run, [folder], tmp_path / "uninterrupted", batch_size=2))
    file = out / JOURNAL / "shards" / "000000.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    (out / "maps" / f".{'0' * 16}.tmp").write_text("half a map")
    reads.clear()
    again = list(predict(run, [folder], out, batch_size=2, resume=True))
    assert [result.score for result in again] == [result.score for result in uninterrupted]
    assert sorted(reads) == [f"{index:03}.png" for index in range(2, 12)]
    assert not [name for name in files_in(out) if name.endswith(".tmp")]


@given(st.integers(1, 10**7), st.integers(1, 1000), st.integers(0, 64))
def test_shards_are_whole_batches_and_enough_for_all_processes(images: int, batch_size: int, workers: int) -> None:
    size = shard_size(images, batch_size, workers)
    assert size % batch_size == 0
    assert 1 <= size <= max(256, batch_size) + batch_size
    if workers and images >= 8 * workers * batch_size:
        assert images / size >= 4 * workers


# Killed


def command(run: Path, folder: Path, out: Path, *more: str) -> list[str]:
    line = [
        "predict",
        str(run),
        str(folder),
        "--out",
        str(out),
        "--batch-size",
        "2",
        "--device",
        "cpu",
        "--no-overlays",
    ]
    return [sys.executable, "-m", "metalad", *line, "--workers", "2", *more]


def lines_in(out: Path) -> list[str]:
    """Return the names of the images that have a line in a shard's file."""
    journal, names = Journal(out), []
    plan = journal.plan()
    assert plan is not None
    for shard in journal.shards(plan):
        names += [source.name for source, _ in zip(shard.sources, stored_lines(shard), strict=False)]
    return names


def killed(how: signal.Signals, line: list[str], out: Path) -> int:
    """Run a command, send it a signal as soon as it has stored a result, and return its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def stored() -> int:
        return sum(file.stat().st_size for file in (out / JOURNAL).glob("shards/*.jsonl"))

    before = stored()
    # Background jobs of a shell ignore SIGINT, and their child processes inherit that.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(line, stdout=-3, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, handler)
    with started as process:
        deadline = time.monotonic() + 120
        while stored() <= before:
            assert time.monotonic() < deadline
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(how)
        _, stderr = process.communicate()
    assert "Traceback" not in stderr
    return process.returncode


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_prediction_killed_twice_in_worker_processes_is_finished_in_this_one(run: Path, tmp_path: Path) -> None:
    folder, out = draw_many(tmp_path / "in", 200), tmp_path / "out"

    def times() -> dict[str, int]:
        return {name: (out / "maps" / f"{name}.png").stat().st_mtime_ns for name in lines_in(out)}

    assert killed(signal.SIGINT, command(run, folder, out, "--workers", "2"), out) == 130
    assert not list(out.rglob(".*.tmp"))
    first = times()
    assert killed(signal.SIGKILL, command(run, folder, out, "--workers", "1", "--resume"), out) == -signal.SIGKILL
    time.sleep(1)  # worker processes end by themselves when their parent was killed
    second = times()
    assert 0 < len(first) < len(second) < 200
    found = list(predict(run, [folder], out, batch_size=2, overlays=False, device="cpu", resume=True))
    for earlier in (first, second):
        assert {name: (out / "maps" / f"{name}.png").stat().st_mtime_ns for name in earlier} == earlier
    uninterrupted = list(predict(run, [folder], tmp_path / "uninterrupted", batch_size=2, overlays=False, device="cpu"))
    assert [(result.path, result.score) for result in found] == [
        (result.path, result.score) for result in uninterrupted
    ]
    for name in files_in(tmp_path / "uninterrupted") - {"predictions.jsonl"}:
        assert (out / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()
    assert files_in(out) == files_in(tmp_path / "uninterrupted")


def test_a_new_shard_file_is_empty(tmp_path: Path) -> None:
    file = ShardFile(tmp_path / "deep" / "000000.jsonl")
    assert file.stored == []
    file.close()
