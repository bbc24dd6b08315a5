"""Files are moved into ok and ng without overwriting any, and a killed process finishes a move later."""

import errno
import os
from pathlib import Path

import pytest

from metalad.data.content import current_file_hash
from metalad.pipelines.watch import moving
from metalad.pipelines.watch.folder import WatchedFolder
from metalad.pipelines.watch.log import Log, Move, Stamp
from metalad.pipelines.watch.moving import Mover
from metalad.results.prediction import SavedPrediction
from tests.pipelines.watch.images import put


class Bench:
    """A folder with one scored file that is to be moved."""

    def __init__(self, folder: Path) -> None:
        self.inbox, self.target = folder / "inbox", folder / "sorted"
        self.file = put(self.inbox / "line/a.png")
        self.content = self.file.read_bytes()
        self.log = Log(folder / "results.sqlite")
        stamp = Stamp.of(self.file)
        assert stamp is not None
        saved = SavedPrediction(self.file, 2.0, 1.0, True, (), None, None, None, (32, 24))
        self.log.add(("line/a.png", stamp), current_file_hash(self.file), [saved], model=None, move="ng")
        self.mover = Mover(self.log, WatchedFolder(self.inbox, []), self.target)

    def move(self) -> Path | None:
        (move,) = self.log.moves()
        return self.mover.move(move)

    @property
    def moved_to(self) -> Path | None:
        (result,) = self.log.results()
        return result.moved_to

    def check_moved(self, name: str = "a.png") -> None:
        destination = self.target / "ng/line" / name
        assert destination.read_bytes() == self.content
        assert not self.file.exists()
        assert self.moved_to == destination
        assert self.log.moves() == []
        assert self.log.stamp("line/a.png") is None
        assert [path.name for path in self.target.rglob("*") if path.name.startswith(".")] == []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def no_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let renames fail as between two file systems, except those of temporary files."""
    replace = Path.replace

    def across(self: Path, target: Path) -> Path:
        if not self.name.startswith("."):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", across)


def test_a_file_is_moved(bench: Bench) -> None:
    assert bench.move() == bench.target / "ng/line/a.png"
    bench.check_moved()


def test_a_file_is_moved_to_another_file_system(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    no_rename(monkeypatch)
    assert bench.move() is not None
    bench.check_moved()


def test_no_file_is_overwritten(bench: Bench) -> None:
    other = put(bench.target / "ng/line/a.png")
    content = other.read_bytes()
    bench.move()
    assert other.read_bytes() == content
    bench.check_moved("a-2.png")


def test_a_file_that_was_replaced_meanwhile_stays(bench: Bench) -> None:
    put(bench.file)
    assert bench.move() is None
    assert bench.file.exists()
    assert list(bench.target.rglob("*.png")) == []
    assert bench.log.moves() == []


def test_a_link_stays(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.file.rename(bench.inbox.parent / "part.png")
    bench.file.symlink_to("../../part.png")
    assert bench.move() is None
    assert bench.file.read_bytes() == bench.content
    assert "a.png is a link, which is not moved" in caplog.text
    assert (bench.log.moves(), list(bench.target.rglob("*.png"))) == ([], [])


def test_a_file_with_new_permissions_is_moved(bench: Bench) -> None:
    bench.file.chmod(0o600)
    os.utime(bench.file)
    assert bench.move() is not None
    bench.check_moved()


def test_a_version_that_arrives_during_the_rename_goes_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (move,) = bench.log.moves()
    late = put(bench.file).read_bytes()
    monkeypatch.setattr(moving, "_is_same", lambda *_: True)
    assert bench.mover.move(move) is None
    assert bench.file.read_bytes() == late
    assert list(bench.target.rglob("*.png")) == []


def test_a_folder_that_cannot_be_written_leaves_the_file(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.target.write_text("a file")
    assert bench.move() is None
    assert bench.file.exists()
    assert "cannot move" in caplog.text
    assert (bench.log.moves(), bench.moved_to) == ([], None)


class KilledError(BaseException):
    """Stands for the end of the process."""


def kill(*_: object, **__: object) -> None:
    raise KilledError


MOMENTS = {
    "before the destination is stored": "metalad.pipelines.watch.log.Log.move_to",
    "before the place is reserved": "os.open",
    "before the rename": "metalad.pipelines.watch.moving._replace",
    "before the move is stored": "metalad.pipelines.watch.log.Log.moved",
    "before the copy": "shutil.copy2",
    "before the copy is renamed": "os.fsync",
    "before the copied file is deleted": "metalad.pipelines.watch.moving._sync_folder",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_move_that_was_interrupted_at_any_moment_is_finished(
    bench: Bench, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if "cop" in moment:
            no_rename(patch)
        patch.setattr(MOMENTS[moment], kill)
        with pytest.raises(KilledError):
            bench.move()
    bench.mover.finish_all()
    bench.check_moved()
    assert len(list(bench.target.rglob("*.png"))) == 1


def test_without_a_target_an_interrupted_move_is_given_up(bench: Bench) -> None:
    Mover(bench.log, WatchedFolder(bench.inbox, []), None).finish_all()
    assert bench.log.moves() == []
    assert bench.file.exists()


def test_a_move_of_a_deleted_file_is_given_up(bench: Bench) -> None:
    (move,) = bench.log.moves()
    assert isinstance(move, Move)
    bench.file.unlink()
    bench.mover.finish_all()
    assert (bench.log.moves(), bench.moved_to) == ([], None)
