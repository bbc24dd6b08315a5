"""Read the results that `watch` has stored."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from metalad.pipelines.watch.log import NAME, Log
from metalad.results.logged import LoggedPrediction
from metalad.runtime.errors import DataError


def stored_results(out: Path) -> Iterator[LoggedPrediction]:
    """Yield the results in the output folder of `watch`, in order; `watch` may run meanwhile.

    Raises:
        DataError: there are none (at the call). RunError: the log cannot be read.
    """
    file = out / NAME
    if not file.is_file():
        raise DataError(f"no results of watch in {out}; give the folder that was its --out")
    return _results(file)


def _results(file: Path) -> Iterator[LoggedPrediction]:
    with contextlib.closing(Log(file, read_only=True)) as log:
        yield from log.results()
