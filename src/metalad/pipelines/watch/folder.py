"""Image files in a watched folder, and notices of changes there."""

import mimetypes
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from metalad.data.formats import IMAGE_SUFFIXES, needed_package
from metalad.data.walking import LeftOut, is_ignored
from metalad.pipelines.watch.log import Stamp
from metalad.runtime.packages import require_packages
from metalad.runtime.progress import logger

RESTART_SECONDS = 2.0
DEBOUNCE_MS = 200
TIMEOUT_MS = 500
_OTHER_IMAGES = frozenset({".arw", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".hdr", ".nef", ".psd", ".raw"})
"""Suffixes of images that the module `mimetypes` does not know everywhere."""


class WatchedFolder:
    """The image files below a folder, by paths relative to it with slashes.

    Ignored are hidden files, folders of network drives, and the folders `excluded`, such as those of the results.
    """

    def __init__(self, folder: Path, excluded: Sequence[Path]) -> None:
        self.folder = folder
        self._root = os.path.realpath(folder)
        self._excluded = {os.path.realpath(path) for path in excluded}
        self._unreadable: set[str] = set()
        self._reported: set[str] = set()

    @property
    def unreadable(self) -> list[str]:
        """The folders that could not be read by the last scan."""
        return sorted(self._unreadable)

    def path(self, relative: str) -> Path:
        """Return the path of a file, as the user wrote the folder."""
        return self.folder / relative

    def stamp(self, relative: str) -> Stamp | None:
        """Return the stamp of a file; None if it is gone."""
        return Stamp.of(self.folder / relative)

    def exists(self, relative: str) -> bool:
        """Return whether a file exists."""
        return (self.folder / relative).exists()

    def relative(self, path: str) -> str | None:
        """Return the relative path of a changed file; None if it is not one that is scored."""
        try:
            below = Path(path).relative_to(self._root)
        except ValueError:
            return None
        if below.suffix.lower() not in IMAGE_SUFFIXES or any(map(is_ignored, below.parts)):
            return None
        if any(os.path.realpath(parent) in self._excluded for parent in Path(path).parents):
            return None
        return below.as_posix()

    def scan(self) -> list[tuple[str, Stamp]]:
        """Return all image files with their stamps, the oldest first.

        A folder that cannot be read is left out with a warning: a network drive may come back. Files with suffixes of
        images that cannot be read are counted in a warning, once for each suffix.
        """
        suffixes = Counter[str]()
        found = list(self._scan(suffixes))
        self._warn_of_unreadable(suffixes)
        found.sort(key=lambda item: (item[1].mtime_ns, item[0]))
        return found

    def _warn_of_unreadable(self, suffixes: Mapping[str, int]) -> None:
        left_out = LeftOut()
        for suffix in suffixes.keys() - self._reported:
            if _is_unreadable_image(suffix):
                left_out.add(suffix, suffixes[suffix])
        if line := left_out.text():
            logger.warning("%s: %s", self.folder, line)
        self._reported |= suffixes.keys()

    def _scan(self, others: Counter[str]) -> Iterator[tuple[str, Stamp]]:
        """Yield the image files with their stamps, and count all other files by suffix."""
        pending, visited = [""], set[str]()
        while pending:
            below = pending.pop()
            real = os.path.realpath(os.path.join(self._root, below))  # noqa: PTH118
            if real in visited or real in self._excluded:
                continue
            visited.add(real)
            try:
                entries = list(os.scandir(real))
            except OSError as error:
                if real not in self._unreadable:
                    logger.warning("cannot read the folder %s: %s; trying again", self.folder / below, error.strerror)
                self._unreadable.add(real)
                continue
            self._unreadable.discard(real)
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                if is_ignored(entry.name):
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                if _is_folder(entry):
                    pending.append(name)
                elif suffix in IMAGE_SUFFIXES:
                    stamp = self.stamp(name)
                    if stamp is not None:
                        yield name, stamp
                else:
                    others[suffix] += 1


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_unreadable_image(suffix: str) -> bool:
    """Return whether a suffix that is not read here is one of images, not of documents or unfinished files."""
    kind = mimetypes.guess_type(f"x{suffix}", strict=False)[0] or ""
    return kind.startswith("image/") or suffix in _OTHER_IMAGES or needed_package(suffix) is not None


class Changes:
    """Paths that have changed, as the operating system reports them, collected by a thread.

    Args:
        folder: the folder.
        wake: is called when something has changed.

    Raises:
        ConfigError: the package watchfiles is not installed.
    """

    def __init__(self, folder: Path, wake: Callable[[], None]) -> None:
        remedy = "use --poll SECONDS, or install metalad[watch]"
        require_packages("watching a folder", {"watchfiles": "watchfiles"}, remedy)
        import watchfiles

        self._watch, self._deleted = watchfiles.watch, watchfiles.Change.deleted
        self._folder, self._wake = os.path.realpath(folder), wake
        self._paths: set[str] = set()
        self._must_scan = False
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metalad-changes", daemon=True)
        self._thread.start()

    def take(self) -> tuple[set[str], bool]:
        """Return the changed paths since the last call, and whether the folder must be listed again."""
        with self._lock:
            taken = self._paths, self._must_scan
            self._paths, self._must_scan = set(), False
        return taken

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join(RESTART_SECONDS)

    def _run(self) -> None:
        warned = ""
        while not self._stop.is_set():
            try:
                self._collect()
            except Exception as error:  # the folder is gone, or the limit of the operating system is reached
                if warned != (warned := str(error)):
                    logger.warning("no notices of changes in %s (%s); trying again", self._folder, error)
            self._note(set(), must_scan=True)
            self._stop.wait(RESTART_SECONDS)

    def _collect(self) -> None:
        """Collect changes until the thread is to stop, or the folder is deleted or replaced."""
        identity = _identity(self._folder)
        batches = self._watch(
            self._folder, watch_filter=None, debounce=DEBOUNCE_MS, stop_event=self._stop, rust_timeout=TIMEOUT_MS,
            yield_on_timeout=True, raise_interrupt=False, ignore_permission_denied=True,
        )  # fmt: skip
        is_first = True
        for batch in batches:
            paths = {path for _, path in batch}
            # Between the start of the process and the first notice, files may have arrived.
            # A folder that was moved here is reported without its files.
            self._note(paths, must_scan=is_first or any(map(os.path.isdir, paths)))
            is_first = False
            # The system sends no notices of another folder that has taken the place of the watched one. Its file number
            # is often that of the deleted one; a folder that is moved away gives no notice.
            if (self._deleted, self._folder) in batch or _identity(self._folder) != identity:
                return

    def _note(self, paths: set[str], *, must_scan: bool) -> None:
        if paths or must_scan:
            with self._lock:
                self._paths |= paths
                self._must_scan = self._must_scan or must_scan
            self._wake()


def _identity(folder: str) -> tuple[int, int] | None:
    """Return the device and the file number of a folder; None if it is gone."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino
