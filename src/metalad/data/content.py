"""What the files hold, whatever their names: fingerprints of data and groups of identical files."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metalad.data.images import find_images
from metalad.data.sample import Sample
from metalad.runtime.errors import ImageError


def data_hash(samples: Sequence[Sample]) -> str:
    """Fingerprint samples: SHA-256 over their relative names, labels, and the contents of images and masks.

    Names are relative to the folder that all images share, so that a moved folder keeps its fingerprint; the
    order of the samples does not matter.

    Raises:
        ImageError: a file cannot be read.
    """
    if not samples:
        return hashlib.sha256().hexdigest()
    common = os.path.commonpath([sample.path.parent.absolute() for sample in samples])

    def line(sample: Sample) -> bytes:
        name = sample.path.absolute().relative_to(common).as_posix()
        mask = "-" if sample.mask is None else content_hash(sample.mask)
        # fsencode, as a file's name need not be valid text
        return os.fsencode(f"{name}\n{sample.defect}\n{content_hash(sample.path)}\n{mask}\n")

    with ThreadPoolExecutor() as pool:
        lines = sorted(pool.map(line, samples))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; of a folder of masks, over its images' names and bytes.

    Raises:
        ImageError: the file cannot be read.
    """
    if path.is_dir():
        lines = [f"{file.relative_to(path).as_posix()}\n{content_hash(file)}\n" for file in find_images(path)]
        return hashlib.sha256(b"".join(map(os.fsencode, lines))).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error


def content_keys(paths: Sequence[Path]) -> list[str]:
    """Give each file a key, equal for two files just when their bytes are equal.

    Only files of equal length are read, so that the keys of many images cost little.
    """
    lengths = [_length(path) for path in paths]
    common = {length for length, count in Counter(lengths).items() if count > 1 and length is not None}
    keys = []
    for index, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        keys.append(_key(path, index) if length in common else f"alone {index}")
    return keys


def _key(path: Path, index: int) -> str:
    try:
        return content_hash(path)
    except ImageError:  # unreadable, and so said where it is decoded
        return f"alone {index}"


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
