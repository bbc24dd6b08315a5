"""Hashes of file contents: fingerprints of data sets, and detection of identical files."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from metalad.data.images import find_images
from metalad.data.sample import Sample
from metalad.runtime.errors import ImageError


def data_hash(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 hash of the samples' relative names, their labels, and the contents of images and masks.

    Names are relative to the common folder of all images, so that moving a folder does not change the hash. The order
    of the samples has no effect.

    Raises:
        ImageError: a file cannot be read.
    """
    if not samples:
        return hashlib.sha256().hexdigest()
    root = os.path.commonpath([sample.path.parent.absolute() for sample in samples])

    def line(sample: Sample) -> bytes:
        name = sample.path.absolute().relative_to(root).as_posix()
        mask = "-" if sample.mask is None else content_hash(sample.mask)
        # fsencode, because a file name is not always valid Unicode
        return os.fsencode(f"{name}\n{sample.defect}\n{content_hash(sample.path)}\n{mask}\n")

    with ThreadPoolExecutor() as pool:
        lines = sorted(pool.map(line, samples))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def content_hash(path: Path) -> str:
    """Return the SHA-256 hash of a file as a hexadecimal string; for a folder of masks, of their names and contents.

    Raises:
        ImageError: the file cannot be read.
    """
    if path.is_dir():
        lines = [f"{file.relative_to(path).as_posix()}\n{content_hash(file)}\n" for file in find_images(path)]
        return hashlib.sha256(b"".join(map(os.fsencode, lines))).hexdigest()
    try:
        return file_hash(path)
    except OSError as error:
        raise ImageError(path, str(error.strerror or error)) from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; an unchanged file is read once in a process."""
    status = path.stat()
    return _hash_of(path, status.st_size, status.st_mtime_ns, status.st_ino)


def current_file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as they are now, in hexadecimal, whatever was read before.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1 << 16)
def _hash_of(path: Path, *_: int) -> str:
    return current_file_hash(path)


def content_keys(paths: Sequence[Path]) -> list[str]:
    """Return a key for each file; two keys are equal if and only if the files have the same content.

    Only files with the same length as another file are read, which saves time.
    """
    lengths = [_length(path) for path in paths]
    shared = {length for length, count in Counter(lengths).items() if count > 1 and length is not None}
    keys = []
    for index, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        keys.append(_key(path, index) if length in shared else f"unique {index}")
    return keys


def _key(path: Path, index: int) -> str:
    try:
        return content_hash(path)
    except ImageError:  # an unreadable file is reported when it is decoded
        return f"unique {index}"


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
