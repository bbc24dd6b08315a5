"""Compare the image counts of a copy of a published category with the published counts."""

from collections.abc import Mapping

from metalad.data.published import Part
from metalad.data.sample import Category


def count_images(category: Category) -> dict[Part, int]:
    """Count the images of each part. Training and validation images are good."""
    train, validation, left_out = map(len, (category.train, category.validation, category.left_out))
    anomalous = sum(sample.abnormal for sample in category.test)
    good = len(category.test) - anomalous
    return {
        "train": train,
        "validation": validation,
        "test good": good,
        "test abnormal": anomalous,
        "train abnormal": left_out,
        "good": train + validation + good,
        "abnormal": anomalous + left_out,
    }


def differences(published: Mapping[Part, int], counts: Mapping[Part, int]) -> tuple[str, ...]:
    """Describe the parts in which a copy has fewer or more images than were published; empty if there are none."""
    return tuple(
        f"{expected - counts[part]:,} of {expected:,} {part} images are missing"
        if counts[part] < expected
        else f"{counts[part] - expected:,} {part} images more than the {expected:,} published"
        for part, expected in published.items()
        if counts[part] != expected
    )
