"""Output on the terminal: JSON, notes, log messages, and one line for an error."""

import contextlib
import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator

from metalad.runtime.errors import MetaladError, printable
from metalad.runtime.packages import not_in_runtime
from metalad.runtime.streams import discard_unwritable_output

BAD_INPUT = 2
BUG = 70
INTERRUPTED = 130
PIPE_CLOSED = 141

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
REMEDIES = {
    errno.ENOSPC: "; free some space or choose another folder",
    errno.EACCES: "; choose files and folders that you may read and write",
    errno.EMFILE: "; raise the limit on open files (`ulimit -n`)",
}


def print_json(value: object) -> None:
    """Print a value as JSON on one line of stdout, at once; NaN is a bug, because JSON has none."""
    print(json.dumps(value, allow_nan=False), flush=True)


def note(text: str) -> None:
    """Print one line that is not a result, on stderr."""
    from metalad.runtime.tasks import rank

    which = f", process {rank()}" if rank() else ""
    with contextlib.suppress(OSError):  # work does not stop because nobody can read its notes
        print(f"metalad{which}: {printable(text)}", file=sys.stderr)


class _Handler(logging.Handler):
    """Prints log messages on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        prefix = "metalad: " if record.levelno >= logging.WARNING else ""
        with contextlib.suppress(OSError):
            tqdm.write(prefix + printable(record.getMessage()), file=sys.stderr)


@contextlib.contextmanager
def logged(*, quiet: bool) -> Iterator[None]:
    """Print the messages of the logger `metalad` on stderr, warnings alone if `quiet`."""
    logger, handler = logging.getLogger("metalad"), _Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def explain(error: BaseException) -> int:
    """Print an error as one line, and return the exit code."""
    line = _one_line(error)
    if line is None or os.environ.get("METALAD_TRACEBACK") == "1":
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    discard_unwritable_output()
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED
    if line is None:
        note("this is a bug in metalad; please report it with the lines above")
        return BUG
    if isinstance(error, KeyboardInterrupt):
        note(line)
        return INTERRUPTED
    note(f"error: {line}")
    return error.exit_code if isinstance(error, MetaladError) else BAD_INPUT


def _one_line(error: BaseException) -> str | None:
    if isinstance(error, MetaladError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; all written files are complete (continue train and predict with --resume)"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_about_memory(str(error))):
        return "not enough memory; close other programs, or use smaller images or batches"
    if isinstance(error, ImportError):
        return not_in_runtime("this command", error)
    if isinstance(error, OSError):
        # Other files are written by functions that name them.
        unnamed = "cannot write the standard output: " if error.errno in _FULL else ""
        where = f"{error.filename}: " if error.filename else unnamed
        return f"{where}{error.strerror or error}{REMEDIES.get(error.errno or 0, '')}"
    return None


def _is_about_memory(text: str) -> bool:
    # torch.OutOfMemoryError is a RuntimeError, and so is the error of its CPU allocator; torch may not be imported.
    return any(words in text.lower() for words in ("out of memory", "not enough memory", "can't allocate memory"))


def escape_odd_file_names() -> None:
    """Print file names that are not UTF-8, or that the terminal's encoding lacks, with escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
