"""Every error a user can cause: one line that says what, where and how to mend it.

The command line prints the line and exits with 2; a Python caller catches `MetaladError` or one of its kinds.
A mistake of ours is never one of these: it keeps its traceback.
"""


class MetaladError(Exception):
    """The base of all errors a user can cause; its text is one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DataError(MetaladError):
    """A folder, a list or a ground-truth mask that cannot be used as it is."""


class ImageError(DataError):
    """One image file that cannot be read, or must not be (a decompression bomb)."""


class ConfigError(MetaladError):
    """A setting that does not exist, has a wrong type, or does not fit the others."""


class ModelFileError(MetaladError):
    """A model file that is damaged, foreign, unsafe or too new."""


class RunError(MetaladError):
    """A run folder that cannot be written, resumed or used for what was asked."""


def printable(text: object) -> str:
    """Return a text, such as a file name, without the control characters by which it could command the terminal."""
    # Lone surrogates, of names that are not UTF-8, stay: they are escaped on output.
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else "?" for c in str(text))
