"""List the image files in a folder and its subfolders, and count the files that are left out."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from metalad.data.derived import (
    count_files,
    is_folder_of_thumbnails,
    is_folder_of_written_pictures,
    thumbnails_beside,
)
from metalad.data.formats import IMAGE_SUFFIXES, needed_package
from metalad.runtime.errors import DataError
from metalad.runtime.files import dead_link_target

RESULTS, MAPS, OVERLAYS = "predictions.jsonl", "maps", "overlays"
"""Output of `predict`: a file of results, and two folders of pictures."""
PAGE_FILES, REPORT, REPORT_FILES = "index_files", "report.html", "report_files"
"""Data of the page of `predict`; the page of `evaluate`, and its pictures."""
MODEL, OUTLIERS = "model.safetensors", "outliers"
"""Output of `train`: the model file, and pictures of training images that stand out."""
JOURNAL = ".predict"
"""Folder in which `predict` records its progress, in its output folder; without results it did not finish."""
DEAD_LINK, SPECIAL, NO_SUFFIX = "dead link", "special file", "without suffix"
"""Reasons for leaving a file out; any other reason is a suffix."""
THUMBNAIL, WRITTEN = "thumbnail", "picture of metalad"
"""Further reasons, for image files that were made from others."""
_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found"}
    | {"system volume information"}
)
_DOCUMENTS = frozenset(
    {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".md", ".rst", ".html", ".htm"}
    | {".pdf", ".doc", ".docx", ".xls", ".xlsx", ".db", ".ini", ".cfg", ".log", ".lnk", ".url", ".sh", ".py", ".md5"}
)
_DOCUMENT_NAMES = frozenset({"license", "licence", "readme", "copying", "notice", "makefile"})


class LeftOut:
    """Counts files that are left out, by suffix or by another reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, reason: str, count: int = 1) -> None:
        """Count files."""
        self._counts[reason] += count

    def merge(self, other: "LeftOut") -> None:
        """Count all files that another has counted."""
        self._counts += other._counts

    def __len__(self) -> int:
        return self._counts.total()

    def text(self) -> str | None:
        """Describe the files in one line, the most frequent reason first; None if there are none."""
        if not self._counts:
            return None
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        parts = [_counted_reason(reason, count) for reason, count in ordered]
        needed = sorted({package for reason in self._counts if (package := needed_package(reason)) is not None})
        remedy = f" (install {' and '.join(needed)} to read them)" if needed else ""
        return f"{len(self)} {'file' if len(self) == 1 else 'files'} left out: {', '.join(parts)}{remedy}"


def _counted_reason(reason: str, count: int) -> str:
    if count == 1 or reason.startswith(".") or reason == NO_SUFFIX:
        return f"{count} {reason}"
    noun, space, rest = reason.partition(" of ")
    return f"{count} {noun}s{space}{rest}"


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders as a list; see `iter_images`.

    Raises:
        DataError: the folder does not exist, is a file, or cannot be read.
    """
    return list(iter_images(folder))


def iter_images(folder: Path) -> Iterator[Path]:
    """Yield the image files (by suffix) in a folder and its subfolders, sorted by POSIX path.

    Hidden files and folders, folders of network drives such as `@eaDir`, and the output pictures of `predict` are
    ignored. Symbolic links are followed, but each folder is visited only once.

    Raises:
        DataError: the folder does not exist or is a file (raised by the call), or a folder cannot be read (raised
            during iteration).
    """
    return walk(folder, LeftOut())


def walk(
    folder: Path, left_out: LeftOut, excluded: Callable[[Sequence[Path]], Collection[Path]] | None = None
) -> Iterator[Path]:
    """Yield image files as `iter_images` does.

    Args:
        folder: the first folder.
        left_out: counts the files that are neither images nor documents.
        excluded: returns those of the image files of one folder that are not listed; it counts them itself.

    Raises:
        DataError: as `iter_images`.
    """
    require_folder(folder)
    return _walk(folder, left_out, excluded or (lambda _: ()))


def files_left_out(folder: Path, left_out: LeftOut) -> None:
    """Count the files of a folder itself, without its subfolders, that are not images and no documents.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        _entries(folder, left_out)
    except OSError as error:
        raise _folder_refusal(folder, error) from error


def is_ignored(name: str) -> bool:
    """Return whether files and folders with a name are ignored: hidden ones, and folders of network drives."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def require_folder(folder: Path) -> None:
    """Raise if a path is not a folder.

    Raises:
        DataError: the folder does not exist, is a file, or cannot be accessed.
    """
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        if (target := dead_link_target(folder)) is not None:
            raise DataError(f"{folder} is a link to {target}, which does not exist; mend the link") from error
        raise DataError(f"no folder {folder}; check the path") from error
    except OSError as error:
        raise _folder_refusal(folder, error) from error
    if not is_folder:
        raise DataError(f"{folder} is a file, but a folder of images is needed")


def _walk(folder: Path, left_out: LeftOut, excluded: Callable[[Sequence[Path]], Collection[Path]]) -> Iterator[Path]:
    pending = [(folder, True)]
    visited: set[tuple[int, int]] = set()
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            yield path
            continue
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = _entries(path, left_out)
        except OSError as error:
            raise _folder_refusal(path, error) from error
        omitted = excluded([entry for entry, is_subfolder in entries if not is_subfolder])
        pending.extend(entry for entry in reversed(entries) if entry[0] not in omitted)


def _entries(folder: Path, left_out: LeftOut) -> list[tuple[Path, bool]]:
    found: list[tuple[str, Path, bool]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_ignored(entry.name):
                continue
            path = folder / entry.name
            reason = _reason(entry, path.suffix.lower())
            if reason == "":
                # With the slash, the order of names equals that of full paths: "a.png" comes before "a/b.png".
                is_folder = entry.is_dir()
                found.append((entry.name + "/" * is_folder, path, is_folder))
            elif reason is not None:
                left_out.add(reason)
    # The pictures that `predict` and `evaluate` wrote are not input images.
    has_outputs = (folder / RESULTS).exists() or (folder / JOURNAL).exists()
    outputs = {f"{MAPS}/", f"{OVERLAYS}/", f"{PAGE_FILES}/"} if has_outputs else set()
    if (folder / REPORT).exists():
        outputs.add(f"{REPORT_FILES}/")
    if (folder / MODEL).exists():
        outputs.add(f"{OUTLIERS}/")
    listed = [(path, is_folder) for name, path, is_folder in sorted(found) if name not in outputs]
    return _originals(listed, left_out)


def _originals(entries: list[tuple[Path, bool]], left_out: LeftOut) -> list[tuple[Path, bool]]:
    """Return the entries of a folder without the pictures that were made from others, and count these."""
    thumbnails = thumbnails_beside([path for path, is_folder in entries if not is_folder])
    kept = []
    for path, is_folder in entries:
        reason = derived_folder(path) if is_folder else THUMBNAIL if path in thumbnails else None
        if reason is None:
            kept.append((path, is_folder))
        else:
            left_out.add(reason, count_files(path, IMAGE_SUFFIXES) if is_folder else 1)
    return kept


def derived_folder(folder: Path) -> str | None:
    """Return why a folder is left out whose pictures were made from others; None if it is not."""
    if is_folder_of_thumbnails(folder):
        return THUMBNAIL
    return WRITTEN if is_folder_of_written_pictures(folder) else None


def _reason(entry: "os.DirEntry[str]", suffix: str) -> str | None:
    """Return why an entry is left out: "" if it is used, None if it is a document, which is not worth counting."""
    try:
        if entry.is_dir():
            return ""
        if not entry.is_file():
            is_link = entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110
            return DEAD_LINK if is_link else SPECIAL
    except OSError:  # a link to itself
        return DEAD_LINK
    if suffix in IMAGE_SUFFIXES:
        return ""
    is_document = suffix in _DOCUMENTS or entry.name.casefold() in _DOCUMENT_NAMES
    return None if is_document else suffix or NO_SUFFIX


def _folder_refusal(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot read the folder {folder}: {error.strerror or error}; check its permissions and links")
