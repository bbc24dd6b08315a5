"""Headless Chromium, driven by Playwright. Tests that need it are skipped where one of the two is missing."""

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="no Chromium on this machine, or Playwright is not installed",
)


@contextlib.contextmanager
def launched_browser(*arguments: str) -> "Iterator[Browser]":
    """Launch Chromium with command-line arguments, and close it at the end.

    Until then, the event loop of Playwright runs: other tests of the process cannot start theirs.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()
