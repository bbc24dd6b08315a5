"""Stopped, killed and gone on with: the results of an undisturbed run, and no image judged twice."""

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
from metalad.pipelines.predict import pipeline, predict
from metalad.pipelines.predict.journal import FOLDER, Journal, ShardFile, found_in, shard_size
from metalad.runtime.errors import RunError
from metalad.runtime.files import exclusive_lock
from tests.noise import draw_many, files_in, noise_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image is read."""
    counted: Counter[str] = Counter()

    def counting(path: Path) -> UInt8[np.ndarray, "height width 3"]:
        counted[path.name] += 1
        return read_image(path)

    monkeypatch.setattr(pipeline, "read_image", counting)
    return counted


def stopped(run: Path, folder: Path, out: Path, after: int) -> None:
    results = predict(run, [folder], out, batch_size=2)
    for _ in range(after):
        next(results)
    results.close()


# In one process


@pytest.mark.parametrize("after", [1, 5, 8])
def test_a_stopped_one_goes_on_with_the_rest(run: Path, tmp_path: Path, reads: Counter[str], after: int) -> None:
    folder, out = draw_many(tmp_path / "in", 30), tmp_path / "out"
    (folder / "003.png").write_text("no image")
    calm = list(predict(run, [folder], out, batch_size=2))
    shutil.rmtree(out)
    stopped(run, folder, out, after)
    assert not (out / "predictions.jsonl").exists()
    reads.clear()
    draw_many(folder / "later", 2)  # what comes later is not part of it
    again = list(predict(run, [folder], out, batch_size=2, resume=True))
    assert again == calm
    assert reads == {f"{index:03}.png": 1 for index in range(after, 30)}
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [result.to_json() for result in calm]


def test_a_finished_one_is_told_again_and_none_is_judged(run: Path, tmp_path: Path, reads: Counter[str]) -> None:
    folder, out = draw_many(tmp_path / "in", 3), tmp_path / "out"
    (folder / "001.png").write_text("no image")
    calm = list(predict(run, [folder], out))
    reads.clear()
    assert list(predict(run, [folder], out, resume=True)) == calm
    assert not reads
    assert [path.name for path in (out / FOLDER).iterdir() if path.name != "lock"] == ["plan.json"]
    draw_many(folder, 4)
    assert len(list(predict(run, [folder], out))) == 4  # without --resume it begins anew


def test_killed_between_the_results_and_the_end(
    run: Path, tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = draw_many(tmp_path / "in", 3), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "finish", lambda _: None)
        calm = list(predict(run, [folder], out))
    reads.clear()
    assert list(predict(run, [folder], out, resume=True)) == calm
    assert not reads
    assert not (out / FOLDER / "sources.jsonl").exists()


def test_resuming_what_never_began_begins(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 2)
    assert len(list(predict(run, [folder], tmp_path / "out", resume=True))) == 2


def test_another_judgement_is_not_gone_on_with(run: Path, tmp_path: Path) -> None:
    folder, out = draw_many(tmp_path / "in", 12), tmp_path / "out"
    stopped(run, folder, out, 1)
    with pytest.raises(RunError, match="was started with scoring"):
        list(predict(run, [folder], out, batch_size=2, scoring="raw", resume=True))
    with pytest.raises(RunError, match="was started with batch_size 2, now it is 3"):
        list(predict(run, [folder], out, batch_size=3, resume=True))
    with pytest.raises(RunError, match="was started with paths"):
        list(predict(run, [tmp_path], out, batch_size=2, resume=True))
    (out / FOLDER / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json is damaged; delete it to begin anew"):
        predict(run, [folder], out, batch_size=2, resume=True)


def test_two_do_not_write_into_one_folder(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no file locks")
    folder, out = draw_many(tmp_path / "in", 2), tmp_path / "out"
    with exclusive_lock(out / FOLDER / "lock", "predict"), pytest.raises(RunError, match="held by another predict"):
        list(predict(run, [folder], out))


def test_a_line_that_was_cut_short_is_judged_again(run: Path, tmp_path: Path, reads: Counter[str]) -> None:
    folder, out = draw_many(tmp_path / "in", 12), tmp_path / "out"
    stopped(run, folder, out, 3)
    calm = list(predict(run, [folder], tmp_path / "calm", batch_size=2))
    file = out / FOLDER / "shards" / "000000.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    (out / "maps" / f".{'0' * 16}.tmp").write_text("half a map")
    reads.clear()
    again = list(predict(run, [folder], out, batch_size=2, resume=True))
    assert [result.score for result in again] == [result.score for result in calm]
    assert sorted(reads) == [f"{index:03}.png" for index in range(2, 12)]
    assert not [name for name in files_in(out) if name.endswith(".tmp")]


@given(st.integers(1, 10**7), st.integers(1, 1000), st.integers(0, 64))
def test_shards_are_whole_batches_and_none_is_idle(images: int, batch_size: int, workers: int) -> None:
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
    """Return the names of the images of which a shard's file holds a line."""
    journal, names = Journal(out), []
    plan = journal.plan()
    assert plan is not None
    for shard in journal.shards(plan):
        names += [source.name for source, _ in zip(shard.sources, found_in(shard), strict=False)]
    return names


def killed(how: signal.Signals, line: list[str], out: Path) -> int:
    """Run a command, send it a signal when it has judged something, and return its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def known() -> int:
        return sum(file.stat().st_size for file in (out / FOLDER).glob("shards/*.jsonl"))

    before = known()
    # Background jobs of a shell ignore SIGINT, and what they start inherits that.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(line, stdout=-3, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, heard)
    with started as process:
        deadline = time.monotonic() + 120
        while known() <= before:
            assert time.monotonic() < deadline
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(how)
        _, words = process.communicate()
    assert "Traceback" not in words
    return process.returncode


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_killed_twice_among_processes_and_finished_here(run: Path, tmp_path: Path) -> None:
    folder, out = draw_many(tmp_path / "in", 200), tmp_path / "out"

    def times() -> dict[str, int]:
        return {name: (out / "maps" / f"{name}.png").stat().st_mtime_ns for name in lines_in(out)}

    assert killed(signal.SIGINT, command(run, folder, out, "--workers", "2"), out) == 130
    assert not list(out.rglob(".*.tmp"))
    first = times()
    assert killed(signal.SIGKILL, command(run, folder, out, "--workers", "1", "--resume"), out) == -signal.SIGKILL
    time.sleep(1)  # those whose caller was killed end by themselves
    second = times()
    assert 0 < len(first) < len(second) < 200
    found = list(predict(run, [folder], out, batch_size=2, overlays=False, device="cpu", resume=True))
    for earlier in (first, second):
        assert {name: (out / "maps" / f"{name}.png").stat().st_mtime_ns for name in earlier} == earlier
    calm = list(predict(run, [folder], tmp_path / "calm", batch_size=2, overlays=False, device="cpu"))
    assert [(result.path, result.score) for result in found] == [(result.path, result.score) for result in calm]
    for name in files_in(tmp_path / "calm") - {"predictions.jsonl"}:
        assert (out / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    assert files_in(out) == files_in(tmp_path / "calm")


def test_a_shards_file_says_what_it_holds(tmp_path: Path) -> None:
    file = ShardFile(tmp_path / "deep" / "000000.jsonl")
    assert file.found == []
    file.close()
