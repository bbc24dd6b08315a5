"""Standard streams that are closed, as services and schedulers start their processes, or that can no longer be written.

An open file must never get the number 0, 1 or 2: a library that writes to stdout or stderr would write into it.
"""

import contextlib
import os
import sys


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed; child processes inherit it."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def discard_unwritable_output() -> None:
    """Redirect stdout and stderr to the null device if they cannot be written.

    Otherwise the interpreter's last flush would fail, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
