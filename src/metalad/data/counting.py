"""Compare a copy of a published category with the numbers it was published with."""

from collections.abc import Mapping

from metalad.data.published import Part
from metalad.data.sample import Category


def count_images(category: Category) -> dict[Part, int]:
    """Count the images of each part; train and validation are good."""
    train, validation, left_out = map(len, (category.train, category.validation, category.left_out))
    abnormal = sum(sample.abnormal for sample in category.test)
    good = len(category.test) - abnormal
    return {
        "train": train,
        "validation": validation,
        "test good": good,
        "test abnormal": abnormal,
        "train abnormal": left_out,
        "good": train + validation + good,
        "abnormal": abnormal + left_out,
    }


def differences(published: Mapping[Part, int], found: Mapping[Part, int]) -> tuple[str, ...]:
    """Say in which parts a copy has fewer or more images than were published; nothing where it has as many."""
    return tuple(
        f"{wanted - found[part]:,} of {wanted:,} {part} images are missing"
        if found[part] < wanted
        else f"{found[part] - wanted:,} {part} images more than the {wanted:,} published"
        for part, wanted in published.items()
        if found[part] != wanted
    )
