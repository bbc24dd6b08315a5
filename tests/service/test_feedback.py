"""The store of pictures that a person marked, and its endpoint."""

import contextlib
import hashlib
import io
import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

import metalad
from metalad.runtime.errors import ConfigError, RunError
from metalad.service.feedback import FeedbackStore, Label
from tests.service.pictures import picture
from tests.service.running import serving


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


def test_the_index_is_in_wal_mode_and_another_process_can_open_it(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path, ["a", "b"])
    rows = [store.add(model, png(seed), "defect", 3.5, 2.0) for seed, model in enumerate("aab")]
    index = sqlite3.connect(tmp_path / "index.sqlite")
    assert index.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert index.execute("SELECT count(*), min(score), max(threshold) FROM feedback").fetchone() == (3, 3.5, 2.0)
    index.close()
    again = FeedbackStore(tmp_path, ["a", "b"])
    assert again.rows() == rows


def test_a_move_that_a_crash_interrupted_is_completed(tmp_path: Path) -> None:
    store, content = FeedbackStore(tmp_path, ["tiny"]), png(0)
    row = store.add("tiny", content, "good", 1.0, 2.0)
    moved = tmp_path / row.file.replace("good", "defect")
    moved.parent.mkdir()
    (tmp_path / row.file).rename(moved)
    store = FeedbackStore(tmp_path, ["tiny"])
    assert [(each.label, each.file) for each in store.rows()] == [("defect", moved.relative_to(tmp_path).as_posix())]
    store.add("tiny", content, "good", 1.0, 2.0)
    assert files(tmp_path) == {row.file}


def test_a_picture_whose_row_cannot_be_written_leaves_the_files_as_before(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path, ["tiny"])
    kept = store.add("tiny", png(0), "good", 1.0, 2.0)
    with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as index:
        index.execute(
            "CREATE TRIGGER full BEFORE INSERT ON feedback BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    changes: list[tuple[bytes, Label]] = [(png(1), "good"), (png(0), "defect"), (png(0), "good")]
    for content, label in changes:
        with pytest.raises(RunError, match="disk is full"):
            store.add("tiny", content, label, 1.0, 2.0)
        assert files(tmp_path) == {kept.file}
        assert store.rows() == [kept]
    with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as index:
        index.execute("DROP TRIGGER full")
    row = store.add("tiny", png(1), "good", 1.0, 2.0)
    assert files(tmp_path) == {kept.file, row.file}


def test_a_picture_without_a_row_is_moved_out_when_the_store_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = FeedbackStore(tmp_path, ["tiny"]).add("tiny", png(0), "good", 1.0, 2.0)
    orphan, own = f"{hashlib.sha256(png(1)).hexdigest()}.png", "a picture of a person.png"
    for name in (orphan, own):
        (tmp_path / "tiny/good" / name).write_bytes(png(1))
    with caplog.at_level(logging.WARNING, "metalad"):
        store = FeedbackStore(tmp_path, ["tiny"])
    assert "moved 1 stored pictures without a row" in caplog.text
    assert files(tmp_path) == {row.file, f"tiny/good/{own}", f"tiny/not_indexed/good/{orphan}"}
    assert store.rows() == [row]


@pytest.mark.parametrize("row_is_deleted", [False, True])
def test_a_removal_that_a_crash_interrupted_is_undone_or_completed(tmp_path: Path, row_is_deleted: bool) -> None:
    """The file is renamed first, then its row is deleted, then the file."""
    row = FeedbackStore(tmp_path, ["tiny"]).add("tiny", png(0), "good", 1.0, 2.0)
    renamed = tmp_path / f"{row.file}.removed"
    (tmp_path / row.file).rename(renamed)
    own = renamed.with_name("own.removed")
    own.write_bytes(b"of a person")
    if row_is_deleted:
        with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as index, index:
            index.execute("DELETE FROM feedback")
    store = FeedbackStore(tmp_path, ["tiny"])
    assert store.rows() == ([] if row_is_deleted else [row])
    assert files(tmp_path) == (set() if row_is_deleted else {row.file})
    assert not renamed.exists()
    assert own.exists()


def test_a_picture_whose_row_cannot_be_deleted_stays(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path, ["tiny"])
    row = store.add("tiny", png(0), "good", 1.0, 2.0)
    with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as index:
        index.execute("CREATE TRIGGER no BEFORE DELETE ON feedback BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    with pytest.raises(RunError, match="disk is full"):
        store.remove("tiny", row.sha256)
    assert (files(tmp_path), store.rows()) == ({row.file}, [row])


def test_a_picture_whose_file_cannot_be_renamed_keeps_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeedbackStore(tmp_path, ["tiny"])
    row = store.add("tiny", png(0), "good", 1.0, 2.0)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunError, match="no permission"):
        store.remove("tiny", row.sha256)
    assert (files(tmp_path), store.rows()) == ({row.file}, [row])


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
    folder = tmp_path / "keep" / "tiny" / "good"
    assert metalad.train(folder, tmp_path / "run", method="variation_model", image_size=32).images == 8


@pytest.fixture
def client(tmp_path: Path, model: metalad.Model) -> Iterator[httpx.Client]:
    with serving(model, tmp_path / "keep") as served, httpx.Client(base_url=served.url) as opened:
        yield opened


def test_the_endpoint_stores_the_score_of_predict_and_the_threshold_that_the_person_saw(
    client: httpx.Client, model: metalad.Model, tmp_path: Path
) -> None:
    content, score = png(0), model.predict(picture(0)).score
    query = {"label": "good", "threshold": score / 2}
    row = client.post("/v1/feedback", params=query, content=content, headers={"Content-Type": "image/png"}).json()
    assert (row["score"], row["threshold"], row["is_anomalous"]) == (score, score / 2, True)
    assert (tmp_path / "keep" / row["file"]).read_bytes() == content
    assert client.get("/v1/feedback").json() == {"tiny": {"good": 1, "defect": 0}}
    form = {"file": ("../../../outside.png", content, "image/png")}
    row = client.post("/v1/feedback", params={"label": "defect"}, files=form).json()
    assert (row["threshold"], row["is_anomalous"]) == (model.threshold, score > model.threshold)
    assert files(tmp_path) == {f"keep/{row['file']}"} == {f"keep/tiny/defect/{row['sha256']}.png"}
    assert client.delete("/v1/feedback", params={"sha256": row["sha256"]}).json()["label"] is None
    assert client.delete("/v1/feedback", params={"sha256": row["sha256"]}).status_code == 404
    assert files(tmp_path) == set()


def test_feedback_on_a_score_of_another_version_of_the_model_is_refused(client: httpx.Client, tmp_path: Path) -> None:
    (described,) = client.get("/v1/models").json()["models"]

    def post(hash_: str) -> httpx.Response:
        query, headers = {"label": "good", "threshold": "1.5", "hash": hash_}, {"Content-Type": "image/png"}
        return client.post("/v1/feedback", params=query, content=png(0), headers=headers)

    refused = post("0" * 64)
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")
    assert refused.json()["detail"] == "the service has loaded another version of the model; score the picture again"
    assert files(tmp_path) == set()
    assert post(described["hash"]).json()["threshold"] == 1.5


def test_refused_feedback_stores_nothing(client: httpx.Client, tmp_path: Path) -> None:
    def post(content: bytes = png(0), **query: str) -> int:
        answer: httpx.Response = client.post(
            "/v1/feedback", params=query, content=content, headers={"Content-Type": "image/png"}
        )
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code

    assert post() == 422
    assert post(label="../good") == 422
    assert post(label="good", model="../tiny") == 404
    assert post(label="good", threshold="nan") == 422
    assert post(content=png(0)[:100], label="good") == 422
    assert post(content=b"", label="good") == 422
    two = [("file", ("a.png", png(seed), "image/png")) for seed in range(2)]
    assert client.post("/v1/feedback", params={"label": "good"}, files=two).status_code == 422
    for sha256 in ("", "../index.sqlite", "0" * 63, "G" * 64):
        assert client.delete("/v1/feedback", params={"sha256": sha256}).status_code == 422
    assert client.put("/v1/feedback").status_code == 405
    assert {path.name for path in (tmp_path / "keep").iterdir()} == {"index.sqlite"}


def test_an_error_of_the_disk_is_answered_without_names_of_folders(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "keep" / "tiny").write_text("a file where a folder is needed")
    answer = client.post(
        "/v1/feedback", params={"label": "good"}, content=png(0), headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 507
    assert str(tmp_path) not in answer.text
    assert client.get("/v1/feedback").json() == {"tiny": {"good": 0, "defect": 0}}


def test_without_a_folder_there_is_no_feedback_and_the_page_has_a_strict_policy(model: metalad.Model) -> None:
    with serving(model, None) as served, httpx.Client(base_url=served.url) as client:
        assert client.get("/v1/models").json()["feedback"] is False
        assert client.post("/v1/feedback", params={"label": "good"}, content=png(0)).status_code == 404
        policy = client.get("/").headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "/v1/feedback" not in client.get("/openapi.json").json()["paths"]
