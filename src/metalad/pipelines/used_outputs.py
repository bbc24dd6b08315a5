"""Pages and reports that exist: replaced only if they are earlier ones of the same kind and origin."""

import json
from pathlib import Path

from metalad.runtime.errors import RunError

REPORT, PAGE = "report.json", "report.html"
COMPARISON_MARK = '<meta name="generator" content="metalad compare">'


def require_same_report(out: Path, run: str, data: Path, *, overwrite: bool) -> None:
    """Check that a folder for a report has none, or an earlier one of the same run and the same data.

    Args:
        out: the folder.
        run: the name of the run folder.
        data: the category's folder.
        overwrite: whether any report may be replaced.

    Raises:
        RunError: it has another report, or a file with the name of one.
    """
    report = out / REPORT
    for path in (report, out / PAGE):
        if path.exists() and not overwrite and not _is_report_of(report, run, str(data.resolve())):
            raise RunError(
                f"{path} exists, and is not of {run or 'this model'} on {data}; replace it with --overwrite, or choose "
                "another --out"
            )


def require_own_comparison(page: Path, *, overwrite: bool) -> None:
    """Check that a page for a comparison does not exist, or is one.

    Raises:
        RunError: it is another file, and `overwrite` is not set.
    """
    if page.is_file() and not overwrite and not _begins_with_mark(page):
        raise RunError(
            f"{page} exists, and is not a page of compare; replace it with --overwrite, or choose another --out"
        )


def _is_report_of(report: Path, run: str, data: str) -> bool:
    try:
        values = json.loads(report.read_text(encoding="utf-8"))
        return bool(values["run"] == run and values["data"] in (data, None))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _begins_with_mark(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return COMPARISON_MARK.encode() in file.read(2000)
    except OSError:
        return False
