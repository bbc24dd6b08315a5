"""Which thresholds separate the good from the anomalous images of a test set; all are chosen on the test images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Separation:
    """How well one threshold can separate the good test images from the anomalous ones.

    An image is anomalous if its score exceeds the threshold. Any threshold from `highest_good` up to, but not
    including, `lowest_anomalous` separates all, if the first is lower. `threshold` gives the highest balanced accuracy:
    the mean of the fraction of anomalous images above it (`found`) and of good ones not above it (`rejected` are).
    It was selected on the test images, so its accuracy is too high for other images.
    """

    highest_good: float
    lowest_anomalous: float
    threshold: float
    balanced_accuracy: float
    found: int
    anomalous: int
    rejected: int
    good: int

    @property
    def is_perfect(self) -> bool:
        """Whether a threshold separates all images."""
        return self.highest_good < self.lowest_anomalous

    def text(self) -> str:
        """Return the result in one sentence, which says that it was chosen on the test images."""
        if self.is_perfect:
            low, high = _distinct(self.highest_good, self.lowest_anomalous)
            return (
                f"chosen on these test images: a threshold between {low} and {high} separates all good from all "
                "anomalous ones"
            )
        return (
            f"chosen on these test images: no threshold separates all; {self.threshold:.4g} has the best balanced "
            f"accuracy, {100 * self.balanced_accuracy:.1f} % ({self.found} of {self.anomalous} anomalous found, "
            f"{self.rejected} of {self.good} good rejected)"
        )


def separation(scores: Float[np.ndarray, " images"], labels: Bool[np.ndarray, " images"]) -> Separation | None:
    """Return how well a threshold can separate the images; None if either kind is missing or a score is not finite.

    Between two scores the threshold is their geometric mean if both are positive, else their mean. Of several
    thresholds with the same balanced accuracy, the highest is selected.

    labels: True for an anomalous image.
    """
    good, anomalous = (np.sort(scores[labels == kind].astype(np.float64)) for kind in (False, True))
    if not (len(good) and len(anomalous) and np.isfinite(scores).all()):
        return None
    # Candidates: below all scores, and each score; an image is rejected if it exceeds the candidate.
    values = np.unique(np.concatenate([good, anomalous]))
    found = (len(anomalous) - np.searchsorted(anomalous, values, side="right")) / len(anomalous)
    passed = np.searchsorted(good, values, side="right") / len(good)
    accuracy = (found + passed) / 2
    best = len(values) - 1 - int(accuracy[::-1].argmax())
    threshold = _between(values[best], values[best + 1]) if best + 1 < len(values) else float(values[best])
    return Separation(
        highest_good=float(good[-1]),
        lowest_anomalous=float(anomalous[0]),
        threshold=threshold,
        balanced_accuracy=float(accuracy[best]),
        found=int((anomalous > threshold).sum()),
        anomalous=len(anomalous),
        rejected=int((good > threshold).sum()),
        good=len(good),
    )


def _between(low: float, high: float) -> float:
    middle = float(np.sqrt(low * high)) if low > 0 else float((low + high) / 2)
    return middle if low <= middle < high else float(low)  # neighbors in floating point


def _distinct(low: float, high: float) -> tuple[str, str]:
    """Return both numbers with the fewest significant digits, four or more, that distinguish them."""
    for digits in range(4, 18):
        texts = f"{low:.{digits}g}", f"{high:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts
