"""Recognize annotation files, which metalad does not read as ground truth: LabelMe, COCO, YOLO, Pascal VOC and others.

They still tell images apart: an image of a good part has no marks.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 64_000_000
"""A larger file is not read as annotations."""
MAX_LISTS = 20
"""JSON and XML files of a folder, apart from those with the name of an image, that are read."""
_SUFFIXES = (".json", ".txt", ".xml")
_MARKS = ("shapes", "objects", "annotations", "regions", "figures", "bboxes")
"""Keys of the lists of marks in the JSON files of LabelMe, Supervisely, VIA and others."""
_CVAT_IMAGE = re.compile(r"<image\b([^>]*\bname=\"([^\"]+)\"[^>]*)>")


@dataclass(frozen=True)
class Annotations:
    """The annotation files of images.

    files: all of them. marked: an annotation file with a mark for each image that has one.
    """

    files: tuple[Path, ...]
    marked: Mapping[Path, Path]


def find_annotations(root: Path, images: Sequence[Path]) -> Annotations | None:
    """Return the annotation files of images below `root`; None without any.

    A file has the name of its image and lies beside it, or in a folder `labels` beside a folder `images`; or it is a
    list for many images, beside them, in `root`, or in its subfolder `annotations`.
    """
    files: dict[Path, None] = {}
    marked: dict[Path, Path] = {}
    by_folder: dict[Path, list[Path]] = {}
    for image in images:
        by_folder.setdefault(image.parent, []).append(image)
    for folder, inside in by_folder.items():
        places = [place for place in (folder, *_folders_of_labels(root, folder)) if place.is_dir()]
        candidates = {path.name: path for place in places for path in place.iterdir() if path.suffix in _SUFFIXES}
        for image in inside if candidates else ():
            for suffix in _SUFFIXES:
                file = candidates.get(f"{image.stem}{suffix}") or candidates.get(f"{image.name}{suffix}")
                has_marks = None if file is None else _has_marks(file)
                if file is not None and has_marks is not None:
                    files[file] = None
                    if has_marks:
                        marked.setdefault(image, file)
    by_name = {image.name: image for image in images}
    for file in _lists({*by_folder, root, root / "annotations"}, {image.stem for image in images}):
        names = _marked_names(file)
        if names is not None:
            files[file] = None
            marked |= {by_name[name]: file for name in names if name in by_name and by_name[name] not in marked}
    return Annotations(tuple(files), marked) if files else None


def _folders_of_labels(root: Path, folder: Path) -> Iterable[Path]:
    parts = folder.relative_to(root).parts
    if "images" in parts:
        index = len(parts) - 1 - parts[::-1].index("images")
        yield root.joinpath(*parts[:index], "labels", *parts[index + 1 :])
    if root.name == "images":
        yield root.parent.joinpath("labels", *parts)
    yield root.joinpath("labels", *parts)
    yield folder / "labels"


def _lists(folders: Iterable[Path], stems: set[str]) -> Iterable[Path]:
    for folder in sorted(folders):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [path for path in inside if path.suffix in (".json", ".xml") and path.stem not in stems]
        yield from found[:MAX_LISTS]


def _has_marks(file: Path) -> bool | None:
    """Return whether the annotation file of one image has a mark; None if it is no annotation file."""
    text = _text(file)
    if text is None:
        return None
    if file.suffix == ".txt":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return bool(lines) if all(map(_is_yolo_line, lines)) else None
    if file.suffix == ".xml":
        return "<object" in text if "<annotation" in text else None
    content = _json(text)
    lists = [list(content[key]) for key in _MARKS if isinstance(content.get(key), list | dict)]
    return any(map(bool, lists)) if lists else None


def _is_yolo_line(line: str) -> bool:
    """Return whether a line has a class and the coordinates of a box or polygon, as fractions of the image's size."""
    kind, *fields = line.split()
    try:
        return kind.isdecimal() and len(fields) >= 4 and all(-0.01 <= float(field) <= 1.01 for field in fields)
    except ValueError:
        return False


def _marked_names(file: Path) -> set[str] | None:
    """Return the names of the images that a COCO or CVAT file marks; None if it is neither."""
    text = _text(file)
    if text is None:
        return None
    if file.suffix == ".xml":
        found = _CVAT_IMAGE.findall(text) if "<annotations" in text else []
        return {Path(name).name for tag, name in found if not tag.endswith("/")} if found else None
    content = _json(text)
    images, marks = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(marks, list):
        return None
    ids = {str(mark.get("image_id")) for mark in marks if isinstance(mark, dict)}
    known = (image for image in images if isinstance(image, dict) and isinstance(image.get("file_name"), str))
    return {Path(image["file_name"]).name for image in known if str(image.get("id")) in ids}


def _text(file: Path) -> str | None:
    try:
        is_small = file.is_file() and file.stat().st_size <= MAX_BYTES
        return file.read_text(encoding="utf-8-sig", errors="replace") if is_small else None
    except OSError:
        return None


def _json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
