"""Versions of Python and packages, for the record of a run."""

import contextlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = ("metalad", "metalad-runtime")


def own_version() -> str:
    """Return the version of metalad, whichever of its two distributions is installed.

    Raises:
        PackageNotFoundError: neither is.
    """
    for name in DISTRIBUTIONS[:-1]:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return version(DISTRIBUTIONS[-1])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of each installed package; a source checkout on the path does not count."""
    installed = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
