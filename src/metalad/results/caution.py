"""Caution about a threshold that is an extrapolation, because too few good images were scored for the wanted rate."""

import math
from dataclasses import dataclass
from typing import Literal

Severity = Literal["caution", "warning", "severe"]
"""By the number of good images expected above the threshold: below 1, below one half, below one fifth."""
WARNING_BELOW = 0.5
SEVERE_BELOW = 0.2
CONSEQUENCES: dict[Severity, str] = {
    "caution": "some defects may pass as good",
    "warning": "many defects may pass as good",
    "severe": "most defects, or all, may pass as good",
}
VERY_FEW = 5
"""With fewer scores, which may be alike by chance, the threshold can be too low as well."""
LABELS: dict[Severity, str] = {"caution": "caution", "warning": "WARNING", "severe": "SEVERE WARNING"}


@dataclass(frozen=True)
class Caution:
    """Why a threshold cannot be relied on, and how severe that is."""

    severity: Severity
    text: str

    def __str__(self) -> str:
        """Return the text after the label of the severity, as printed at the top of each output."""
        return f"{LABELS[self.severity]}: {self.text}"


def extrapolation_caution(
    images: int, rate: float, threshold: float, highest: float, alternative: tuple[float, float]
) -> Caution | None:
    """Return a caution if fewer than one of the good images is expected above the threshold, else None.

    Args:
        images: scored good images. rate: the false-alarm rate that the threshold is set for.
        threshold: for that rate. highest: the highest score of a good image.
        alternative: a rate that so many images support, and its threshold.
    """
    expected = images * rate
    if expected >= 1:
        return None
    severity: Severity = "severe" if expected < SEVERE_BELOW else "warning" if expected < WARNING_BELOW else "caution"
    consequence = CONSEQUENCES[severity] + (", or most good images be rejected" if images < VERY_FEW else "")
    times = f", {threshold / highest:.3g} times their highest score" if highest > 0 else ""
    text = (
        f"the threshold of {threshold:.4g} for {100 * rate:.3g} % false alarms is an extrapolation from {images} good "
        f"images{times}: {consequence}. Give {math.ceil(round(1 / rate, 6))} good images or more, or use "
        f"--false-alarms {alternative[0]:g} (threshold {alternative[1]:.4g})"
    )
    return Caution(severity, text)
