"""What reaches the terminal: JSON, notes, and one line for what went wrong."""

import errno
import json
import os
import sys
import traceback

from metalad.runtime.errors import MetaladError, printable

BAD_INPUT = 2
BUG = 70
INTERRUPTED = 130
PIPE_CLOSED = 141

REMEDIES = {
    errno.ENOSPC: "; free some space or choose another folder",
    errno.EACCES: "; choose files and folders that you may read and write",
    errno.EMFILE: "; raise the limit on open files (`ulimit -n`)",
}


def print_json(value: object) -> None:
    """Print a value as JSON on one line of stdout, at once; NaN is a mistake of ours, as JSON has none."""
    print(json.dumps(value, allow_nan=False), flush=True)


def note(text: str) -> None:
    """Print one line that is not a result, on stderr."""
    from metalad.runtime.tasks import rank

    which = f", process {rank()}" if rank() else ""
    print(f"metalad{which}: {printable(text)}", file=sys.stderr)


def explain(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code."""
    line = _one_line(error)
    if line is None or os.environ.get("METALAD_TRACEBACK") == "1":
        traceback.print_exception(error)
    _discard_unwritable_output()
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
        return "interrupted; nothing is half-written (train and predict go on where they stopped by --resume)"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _names_memory(str(error))):
        return "not enough memory; close other programs, or take smaller images or batches"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}{REMEDIES.get(error.errno or 0, '')}"
    return None


def _names_memory(text: str) -> bool:
    # torch.OutOfMemoryError is a RuntimeError, and so is what its CPU allocator raises; torch may not be imported.
    return any(words in text.lower() for words in ("out of memory", "not enough memory", "can't allocate memory"))


def _discard_unwritable_output() -> None:
    """Point a stdout that takes no more at nothing, lest the interpreter's last flush fails a second time."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def survive_odd_file_names() -> None:
    """Print a file name that is not UTF-8, or not in the terminal's alphabet, with escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
