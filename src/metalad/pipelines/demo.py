"""Train and evaluate on photographs of cookies that ship with the package: 31 good ones, and 46 others to score.

`metalad/data/demo_images/cookie/LICENSE.txt` names the authors of the photographs and their license.
"""

from pathlib import Path

import metalad.data
from metalad.detectors.base import DetectorConfig, GradientDetector
from metalad.pipelines.config import DEFAULT_METHOD, method_and_config
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.train import train
from metalad.results.report import Report

DATA = Path(metalad.data.__file__).parent / "demo_images" / "cookie"
MINUTES = 2.5
FALSE_ALARMS = 0.05
"""The rate that 31 images support; for one in a hundred, the threshold would be an extrapolation."""


def demo(
    out: str | Path = Path("demo-run"),
    *,
    method: str | DetectorConfig = DEFAULT_METHOD,
    minutes: float | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Report:
    """Train on the cookies that ship with the package, evaluate, and return the report.

    Args:
        out: the run folder; the page is `evaluation/report.html` inside it. A stopped demo is resumed, a finished one
            is only evaluated again.
        method: any of `metalad methods`.
        minutes: for training, for a method with gradient descent; 2.5 by default. Others have none to shorten.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show progress on stderr.

    Raises:
        RunError: `out` cannot be used. ConfigError: no such method, or an impossible setting.
    """
    if minutes is None and issubclass(method_and_config(method, {})[0].load(), GradientDetector):
        minutes = MINUTES
    model = train(
        DATA,
        out,
        method=method,
        minutes=minutes,
        false_alarms=FALSE_ALARMS,
        resume=True,
        device=device,
        progress=progress,
    )
    return evaluate(model, DATA, out=Path(out) / "evaluation", progress=progress)
