"""Run a page in headless Chromium: a test's script acts as the user, and returns a value as JSON."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

_ADDED = """<script>
(async () => {
  const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  const press = (element, key) =>
    element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const visible = () => [...document.querySelectorAll("#image-table tbody tr")].filter((row) => row.checkVisibility());
  const set = (element, value, type = "input") => {
    element.value = value;
    element.dispatchEvent(new Event(type, { bubbles: true }));
  };
  const byId = (id) => document.getElementById(id);
  let result;
  try { result = await (async () => { SCRIPT })(); } catch (error) { result = { error: String(error.stack ?? error) }; }
  parent.postMessage(JSON.stringify(result), "*");
})();
</script>
</body>"""


# The page is in a frame, because a window of Chromium is at least 500 px wide.
_FRAME = """<body style="margin:0"><iframe src="PAGE" style="width:WIDTHpx;height:900px;border:0"></iframe>
<script>
addEventListener("message", (event) => {
  const output = document.createElement("pre");
  output.id = "test-result";
  output.textContent = event.data;
  document.body.append(output);
});
</script>"""


def run_in_browser(page: Path, script: str, width: int = 1400, fragment: str = "") -> Any:
    """Open a copy of the page beside it, run the script (the body of an async function), and return its value."""
    copy, frame, profile = (page.with_name(name) for name in ("copy.html", "frame.html", ".browser"))
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", _ADDED.replace("SCRIPT", script)), "utf-8")
    frame.write_text(_FRAME.replace("PAGE", copy.name + fragment).replace("WIDTH", str(width)), "utf-8")
    assert CHROMIUM is not None
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    try:
        dom = subprocess.run(
            [CHROMIUM, *arguments, f"--user-data-dir={profile}", "--window-size=1500,900", frame.resolve().as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
    finally:
        copy.unlink()
        frame.unlink()
        shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r'<pre id="test-result">(.*?)</pre>', dom, flags=re.DOTALL)
    assert found, dom[-2000:]
    result = json.loads(html.unescape(found.group(1)))
    assert not (isinstance(result, dict) and "error" in result), result["error"]
    return result
