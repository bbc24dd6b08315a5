"""Write the results of a bulk prediction in other formats: CSV, and COCO annotations."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from metalad.runtime.files import replacing

IMAGE_COLUMNS = ("path", "score", "threshold", "is_anomalous", "error")
REGION_COLUMNS = ("region", "left", "top", "width", "height", "area", "peak_score")


def write_formats(format: str, results: Path) -> None:
    """Convert a file of JSON lines, also into the formats of files that exist; memory does not grow with the images.

    format: `csv` writes `predictions.csv` beside the results, `coco` writes `predictions.coco.json`, `jsonl` nothing.

    Raises:
        RunError: a file cannot be written.
    """
    for name, (suffix, write) in _FORMATS.items():
        path = results.with_suffix(suffix)
        if name == format or path.exists():
            # A file name that is not UTF-8 contains lone surrogates: written as \\udc.., as in the JSON lines.
            with (
                replacing(path) as temporary,
                temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
            ):
                write(file, results)


def other_formats(results: Path) -> tuple[Path, ...]:
    """Return the files that `write_formats` may write."""
    return tuple(results.with_suffix(suffix) for suffix, _ in _FORMATS.values())


def _lines(results: Path) -> Iterator[dict[str, Any]]:
    with results.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write_csv(file: TextIO, results: Path) -> None:
    """Write a row for each region, and one for an image without any."""
    writer = csv.writer(file)
    writer.writerow((*IMAGE_COLUMNS, *REGION_COLUMNS))
    for values in _lines(results):
        image = [_text(values.get(name)) for name in IMAGE_COLUMNS]
        if not values.get("regions"):
            writer.writerow([*image, *[""] * len(REGION_COLUMNS)])
        for number, region in enumerate(values.get("regions", ()), start=1):
            writer.writerow([*image, number, *region["box"], region["area"], region["peak_score"]])


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else value


def _write_coco(file: TextIO, results: Path) -> None:
    """Write COCO's object: images, annotations (one a region), and the category `anomaly`."""
    file.write('{"info": {"description": "anomalies found by metalad"}, ')
    file.write('"categories": [{"id": 1, "name": "anomaly"}], "images": [')
    _write_list(file, _coco_images(results))
    file.write('], "annotations": [')
    _write_list(file, _coco_annotations(results))
    file.write("]}\n")


def _write_list(file: TextIO, entries: Iterator[dict[str, Any]]) -> None:
    for number, entry in enumerate(entries):
        file.write((",\n" if number else "\n") + json.dumps(entry, allow_nan=False))


def _coco_images(results: Path) -> Iterator[dict[str, Any]]:
    for number, values in enumerate(_lines(results), start=1):
        if "error" not in values:
            copied = ("height", "width", "score", "threshold", "is_anomalous")
            yield {"id": number, "file_name": values["path"], **{name: values[name] for name in copied}}


def _coco_annotations(results: Path) -> Iterator[dict[str, Any]]:
    number = 0
    for image, values in enumerate(_lines(results), start=1):
        for region in values.get("regions", ()):
            number += 1
            yield {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "bbox": region["box"],
                "area": region["area"],
                "segmentation": [[coordinate for vertex in region["polygon"] for coordinate in vertex]],
                "iscrowd": 0,
                "score": region["peak_score"],
            }


_FORMATS: Mapping[str, tuple[str, Callable[[TextIO, Path], None]]] = {
    "csv": (".csv", _write_csv),
    "coco": (".coco.json", _write_coco),
}
