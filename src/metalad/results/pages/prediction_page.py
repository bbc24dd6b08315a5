"""The page of a bulk prediction: all images by decreasing score, in small data files that the page loads when needed.

A page opened from a disk may not read other files, but it may load scripts. So the rows are in scripts, `ROWS` each.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int64

from metalad.data.walking import OVERLAYS, PAGE_FILES
from metalad.results.caution import Caution
from metalad.results.pages.page import digits, times_threshold, write_html_page
from metalad.runtime.files import os_errors_as_run_errors
from metalad.runtime.progress import logger
from metalad.runtime.sidecar import replace_own_files
from metalad.visualization.maps import color_stops

PAGE, FILES = "index.html", PAGE_FILES
OWN = "[0-9][0-9][0-9][0-9][0-9].js"
"""Pattern of the names of the data files."""
ROWS = 1000
"""Images in a data file, which has about 0.2 MB."""
MAX_SHOWN_PIXELS = 30_000_000
"""Larger pictures are shown only on request: a page of 50 would need gigabytes."""
SHOWN_BY_BROWSERS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".avif"})
MARK = '<meta name="generator" content="metalad predict">'
REJECTED, PASSED, UNREADABLE = range(3)


@dataclass(frozen=True)
class PredictionInfo:
    """What the page shows about all images: the model, the threshold of the scores, and a caution about it."""

    model: str
    scoring: str
    threshold: float
    caution: Caution | None = None


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Where the line of each image starts in the file of results: rejected first, then by decreasing score."""

    starts: Int64[np.ndarray, " images"]
    counts: tuple[int, int, int]
    has_pictures: bool


def write_prediction_page(results: Path, info: PredictionInfo) -> None:
    """Write `index.html` and its data files beside a file of results (JSON lines).

    An `index.html` that is not metalad's is kept, with a warning. While files are replaced there is no page, so that an
    interrupted command never leaves a page of mixed results. Memory grows by 20 bytes an image.

    Raises:
        RunError: a file cannot be written.
    """
    page = results.with_name(PAGE)
    if page.exists() and not _is_own(page):
        logger.warning("%s is not a page of metalad and was kept; the results have no page", page)
        return
    new = page.with_name(f".{FILES}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        with os_errors_as_run_errors(new), results.open("rb") as lines:
            new.mkdir()
            found = _sorted(lines)
            for number, start in enumerate(range(0, len(found.starts), ROWS)):
                rows = list(_rows(lines, found.starts[start : start + ROWS], results.parent))
                text = f"metaladRows({number}, {json.dumps(rows, separators=(',', ':'))});\n"
                (new / f"{number:05}.js").write_text(text, encoding="ascii")
        remove_prediction_page(results.parent)
        replace_own_files(page.with_name(FILES), new, OWN)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    write_html_page(page, "prediction.html", _values(found, info))


def remove_prediction_page(folder: Path) -> None:
    """Delete the page of an earlier prediction and its data files, if they are metalad's.

    Raises:
        RunError: a file cannot be deleted.
    """
    page = folder / PAGE
    if _is_own(page):
        with os_errors_as_run_errors(page):
            page.unlink()
        replace_own_files(folder / FILES, folder / f".{FILES}.new-none", OWN)


def _is_own(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return MARK.encode() in file.read(2000)
    except OSError:
        return False


def _sorted(lines: IO[bytes]) -> _Sorted:
    starts, groups, scores, start, has_pictures = [], [], [], 0, False
    for line in lines:
        values = json.loads(line)
        score = values.get("score")
        group = UNREADABLE if score is None else REJECTED if values["is_anomalous"] else PASSED
        starts.append(start)
        groups.append(group)
        scores.append(0.0 if score is None else score)
        has_pictures = has_pictures or bool(values.get("overlay"))
        start += len(line)
    order = np.lexsort((-np.array(scores, np.float64), np.array(groups, np.int8)))
    counts = np.bincount(np.array(groups, np.int64), minlength=3).tolist()
    return _Sorted(np.array(starts, np.int64)[order], (counts[0], counts[1], counts[2]), has_pictures)


def _rows(lines: IO[bytes], starts: Int64[np.ndarray, " rows"], out: Path) -> Iterator[list[Any]]:
    """Yield [path, score, score as text, times threshold, is rejected, regions, overlay, image, is large].

    For a file that could not be read: [path, reason].
    """
    for start in starts.tolist():
        lines.seek(start)
        values = json.loads(lines.readline())
        path = values["path"] or ""
        if values.get("score") is None:
            yield [path, values.get("error") or "unreadable"]
            continue
        score, threshold, overlay = values["score"], values["threshold"], values.get("overlay")
        is_shown = os.path.splitext(path)[1].lower() in SHOWN_BY_BROWSERS  # noqa: PTH122 (pathlib is slow)
        yield [
            path,
            score,
            digits(score, threshold),
            times_threshold(score, threshold),
            int(values["is_anomalous"]),
            len(values.get("regions", ())),
            _link(overlay, out, is_output=True) if overlay else "",
            _link(path, out) if path and is_shown else "",
            int((values.get("height") or 0) * (values.get("width") or 0) > MAX_SHOWN_PIXELS),
        ]


def _link(path: str, out: Path, *, is_output: bool = False) -> str:
    folder, name = os.path.split(path)
    return f"{_folder_link(folder, out, is_output)}/{quote(os.fsencode(name))}"


@functools.lru_cache(maxsize=4096)
def _folder_link(folder: str, out: Path, is_output: bool) -> str:
    path = Path(folder)
    if is_output and not path.is_relative_to(out):
        # Results that were added to later may name the folder in another way.
        ends = (out.joinpath(*path.parts[index:]) for index, part in enumerate(path.parts) if part == OVERLAYS)
        path = next((end for end in ends if end.is_dir()), path)
    try:
        return quote(os.fsencode(os.path.relpath(path, out).replace(os.sep, "/")))
    except ValueError:  # another drive
        return path.absolute().as_uri()


def _values(found: _Sorted, info: PredictionInfo) -> dict[str, object]:
    rejected, passed, unreadable = found.counts
    total = len(found.starts)
    headline = f"{rejected} of {rejected + passed} images rejected"
    return {
        "title": f"{info.model}: {headline}",
        "mark": MARK,
        "headline": headline,
        "info": info,
        "counts": {"All": total, "Rejected": rejected, "Passed": passed, "Unreadable": unreadable},
        "unreadable": unreadable,
        "has_pictures": found.has_pictures,
        "color_stops": color_stops(),
        "data": {"counts": list(found.counts), "rows": ROWS, "files": FILES, "hasPictures": found.has_pictures},
    }
