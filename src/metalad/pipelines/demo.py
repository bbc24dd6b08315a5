"""See the whole on real photographs: train on 31 good cookies, judge 46 others, write the report.

The images ship with the package; `demo_images/cookie/LICENSE.txt` names their authors and their licence.
"""

from pathlib import Path

import metalad.data
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.train import train
from metalad.results.report import Report

DATA = Path(metalad.data.__file__).parent / "demo_images" / "cookie"
FALSE_ALARMS = 0.05
"""What 31 images can just tell of: one in a hundred would lie far beyond all of them."""


def demo(
    out: Path = Path("demo-run"),
    *,
    method: str = "metal_features",
    minutes: float | None = 2.5,
    device: str = "auto",
    progress: bool = False,
) -> Report:
    """Train on the cookies that ship with the package, evaluate, and return what was found.

    Args:
        out: the run folder; the report lies in `evaluation/report.html` inside it. A demo that was stopped there
            goes on, a finished one is only evaluated again.
        method: any of `metalad methods`.
        minutes: shorten gradient descent so that it fits into so many minutes; a machine that needs less takes less.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show a progress bar on the terminal.

    Raises:
        RunError: `out` cannot be used. ConfigError: no such method, or a setting that cannot be.
    """
    train(
        DATA,
        out,
        method=method,
        minutes=minutes,
        false_alarms=FALSE_ALARMS,
        resume=True,
        device=device,
        progress=progress,
    )
    return evaluate(out, DATA, device=device, progress=progress)
