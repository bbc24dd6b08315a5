"""Run a page in headless Chromium: a test's script acts as the user, and returns a value."""

from pathlib import Path
from typing import Any

from tests.browser import launched_browser

_SCRIPT = """async () => {
  const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  const until = async (done) => {
    for (let i = 0; i < 2400; i += 1) { if (done()) return; await wait(25); }
    throw new Error(`not within 60 s: ${done}`);
  };
  const press = (element, key) =>
    element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const visible = () => [...document.querySelectorAll("#image-table tbody tr")].filter((row) => row.checkVisibility());
  const set = (element, value, type = "input") => {
    element.value = value;
    element.dispatchEvent(new Event(type, { bubbles: true }));
  };
  const byId = (id) => document.getElementById(id);
  const tooLong = async () => { await wait(120_000); throw new Error("the script did not end within 120 s"); };
  return Promise.race([(async () => { SCRIPT })(), tooLong()]);
}"""


def run_in_browser(page: Path, script: str, width: int = 1400, fragment: str = "") -> Any:
    """Open the page in a window of a width, run the script (the body of an async function), and return its value.

    An error of the script fails the test. Time is real: a machine that is busy makes a test slow, not wrong.
    """
    with launched_browser() as browser:
        window = browser.new_page(viewport={"width": width, "height": 900})
        window.set_default_timeout(120_000)
        window.goto(page.resolve().as_uri() + fragment)
        return window.evaluate(_SCRIPT.replace("SCRIPT", script))
