"""The store of pictures that a person marked, and its endpoint."""

import hashlib
import io
import sqlite3
import threading
from pathlib import Path

import pytest
from PIL import Image

import metalad
from metalad.runtime.errors import ConfigError, RunError
from metalad.service.feedback import FeedbackStore
from tests.service.pictures import picture


def png(seed: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture(seed)).save(data, "PNG")
    return data.getvalue()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix == ".png"}


def test_a_picture_is_stored_once_and_a_changed_label_moves_it(tmp_path: Path) -> None:
    store, content = FeedbackStore(tmp_path, ["tiny"]), png(0)
    name = f"{hashlib.sha256(content).hexdigest()}.png"
    first = store.add("tiny", content, "good", 1.0, 2.0)
    store.add("tiny", content, "good", 1.0, 2.0)
    assert files(tmp_path) == {f"tiny/good/{name}"}
    assert (tmp_path / first.file).read_bytes() == content
    second = store.add("tiny", content, "defect", 3.0, 2.0)
    assert files(tmp_path) == {f"tiny/defect/{name}"}
    assert (first.is_anomalous, second.is_anomalous) == (False, True)
    assert store.rows() == [second]
    assert store.remove("tiny", first.sha256)
    assert not store.remove("tiny", first.sha256)
    assert (files(tmp_path), store.rows()) == (set(), [])


def test_the_index_is_in_wal_mode_and_outlives_the_store(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path, ["a", "b"])
    rows = [store.add(model, png(seed), "defect", 3.5, 2.0) for seed, model in enumerate("aab")]
    store.close()
    index = sqlite3.connect(tmp_path / "index.sqlite")
    assert index.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert index.execute("SELECT count(*), min(score), max(threshold) FROM feedback").fetchone() == (3, 3.5, 2.0)
    index.close()
    again = FeedbackStore(tmp_path, ["a", "b"])
    assert again.rows() == rows
    again.close()


def test_a_move_that_a_crash_interrupted_is_completed(tmp_path: Path) -> None:
    store, content = FeedbackStore(tmp_path, ["tiny"]), png(0)
    row = store.add("tiny", content, "good", 1.0, 2.0)
    store.close()
    moved = tmp_path / row.file.replace("good", "defect")
    moved.parent.mkdir()
    (tmp_path / row.file).rename(moved)
    store = FeedbackStore(tmp_path, ["tiny"])
    assert [(each.label, each.file) for each in store.rows()] == [("defect", moved.relative_to(tmp_path).as_posix())]
    store.add("tiny", content, "good", 1.0, 2.0)
    assert files(tmp_path) == {row.file}
    store.close()


def test_threads_that_change_labels_leave_one_file_for_each_row(tmp_path: Path) -> None:
    store, contents = FeedbackStore(tmp_path, ["tiny"]), [png(seed) for seed in range(4)]

    def change(first: int) -> None:
        for step in range(12):
            content = contents[(first + step) % 4]
            store.add("tiny", content, "good" if (first * step) % 3 else "defect", 1.0, 2.0)

    threads = [threading.Thread(target=change, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(tmp_path) == {row.file for row in store.rows()}
    assert len(store.rows()) == 4
    store.close()


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\\b", "c:", "ends.", "", "new\nline"])
def test_a_model_whose_name_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="NAME=PATH"):
        FeedbackStore(tmp_path / "keep", [name])
    assert not (tmp_path / "keep").exists()


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="choose another folder"):
        FeedbackStore(tmp_path / "file", ["tiny"])
    (tmp_path / "index.sqlite").write_text("no database, but a text that is long enough to be read as one" * 20)
    with pytest.raises(RunError, match="choose another folder"):
        FeedbackStore(tmp_path, ["tiny"])


def test_training_takes_the_folder_of_good_pictures(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "keep", ["tiny"])
    for seed in range(200, 208):
        store.add("tiny", png(seed), "good", 1.0, 2.0)
    store.add("tiny", png(300), "defect", 3.0, 2.0)
    store.close()
    folder = tmp_path / "keep" / "tiny" / "good"
    assert metalad.train(folder, tmp_path / "run", method="variation_model", image_size=32).images == 8
