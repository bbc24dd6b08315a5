"""Read the rows of CSV files, as spreadsheet programs of any country write them."""

import codecs
import csv
import io
from pathlib import Path

from metalad.runtime.errors import DataError
from metalad.runtime.files import special_kind

Row = tuple[int, list[str]]
"""The number of a line, from 1, and its fields."""
_DELIMITERS = ",;\t|"
_DELIMITER_LINE = "sep="
"""Excel's first line that declares the delimiter."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_rows(listing: Path, heading: str) -> list[Row]:
    """Return the non-empty rows of a CSV file, including the header, with line numbers from 1 and stripped fields.

    The fields are separated by commas, semicolons, tabs or bars; the file is in UTF-8, or in UTF-16 with a byte order
    mark.

    Raises:
        DataError: the file cannot be read, has another encoding, or has no row below its header; the text gives
            `heading` as an example.
    """
    try:
        if (kind := special_kind(listing)) is not None:
            raise DataError(f"{listing} is {kind}, not a file; it must be a CSV file in UTF-8")
        rows = _rows(_text(listing, listing.read_bytes()))
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {listing}: {error}; it must be a CSV file in UTF-8") from error
    if len(rows) < 2:
        raise DataError(f"{listing} lists no images; it needs a header such as {heading} and one line for each image")
    return rows


def _text(listing: Path, content: bytes) -> str:
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"cannot read {listing}: line {line} is not in {encoding.removesuffix('-sig').upper()}; it must be a CSV "
            "file in UTF-8 (in Excel: Save As, CSV UTF-8)"
        ) from error
    if "\0" in text:
        raise DataError(
            f"cannot read {listing}: it has zero bytes, as a spreadsheet or UTF-16 has; it must be a CSV file in UTF-8 "
            "(in Excel: Save As, CSV UTF-8)"
        )
    return text


def _rows(text: str) -> list[Row]:
    """Return the rows, split at the first delimiter that every row has; at commas if there is none."""
    first, _, _ = text.partition("\n")
    if first.strip().lower().startswith(_DELIMITER_LINE) and len(first.strip()) == len(_DELIMITER_LINE) + 1:
        return _split(text, first.strip()[-1])[1:]
    found = {delimiter: _split(text, delimiter) for delimiter in _DELIMITERS if delimiter in text}
    complete = [rows for rows in found.values() if all(len(row) > 1 for _, row in rows)]
    return complete[0] if complete else found.get(",") or _split(text, ",")


def _split(text: str, delimiter: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    stripped = ((reader.line_num, [field.strip() for field in row]) for row in reader)
    return [(line, row) for line, row in stripped if any(row)]
