"""Files that belong to a page, in a folder beside it: replaced together, without touching other files there."""

import contextlib
from pathlib import Path

from metalad.runtime.files import os_errors_as_run_errors


def replace_own_files(folder: Path, new: Path, own: str) -> None:
    """Delete the files in `folder` that match the pattern `own`, move those of `new` there, and delete `new`.

    Other files in `folder` stay. If none is left and there are no new ones, the folder is deleted.

    Raises:
        RunError: a file cannot be deleted or moved.
    """
    with os_errors_as_run_errors(folder):
        for file in folder.glob(own):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it does not exist, or has other files
            folder.rmdir()
        if new.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for file in new.iterdir():
                file.replace(folder / file.name)
            new.rmdir()
