"""Split samples by chance, but the same way every time, and never identical files to different sides."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from metalad.data.content import content_keys
from metalad.data.listing import in_order
from metalad.data.sample import Sample
from metalad.runtime.errors import DataError

_TEST_SHARE = 0.2  # of the good images: 80 of Head CT's 100 train, 20 test beside the 100 abnormal


def hold_out(
    good: Sequence[Sample], abnormal: Sequence[Sample], seed: int, source: Path
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split images that were published without a split into (train, test), the test in the order of its paths.

    A fifth of the good images, chosen by `seed`, and all abnormal ones are for the test. Identical files go to the
    same side.

    Raises:
        DataError: the good images are copies of one another or of abnormal ones; `source` is where they come from.
    """
    keys = content_keys([sample.path for sample in (*good, *abnormal)])
    # A good image whose copy is labelled abnormal must be tested on, as the abnormal ones are.
    tested = {index for index, key in enumerate(keys[: len(good)]) if key in keys[len(good) :]}
    free = [index for index in range(len(good)) if index not in tested]
    count = max(round(_TEST_SHARE * len(good)) - len(tested), 0)
    tested |= {free[index] for index in choose([keys[index] for index in free], count, seed)}
    train = tuple(sample for index, sample in enumerate(good) if index not in tested)
    if good and not train:
        raise DataError(f"the good images of {source} are copies of one another or of abnormal ones")
    return train, in_order((*abnormal, *(good[index] for index in sorted(tested))))


def split_validation(
    samples: Sequence[Sample], fraction: float = 0.1, seed: int = 0
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split samples into (train, validation), both in the given order; at least one on each side.

    Files with identical content stay on one side wherever that leaves something on both.

    Args:
        samples: at least two.
        fraction: share of the samples to set aside, in (0, 1); their number is rounded.
        seed: another seed, another split.

    Raises:
        DataError: fewer than two samples.
    """
    if len(samples) < 2:
        raise DataError(f"found {len(samples)} good images, but at least 2 are needed: to train on and to validate on")
    count = min(max(round(fraction * len(samples)), 1), len(samples) - 1)
    chosen = choose(content_keys([sample.path for sample in samples]), count, seed)
    if not 0 < len(chosen) < len(samples):  # nothing but copies of one another
        chosen = choose([str(index) for index in range(len(samples))], count, seed)
    train = tuple(sample for index, sample in enumerate(samples) if index not in chosen)
    return train, tuple(samples[index] for index in sorted(chosen))


def choose(keys: Sequence[str], count: int, seed: int) -> frozenset[int]:
    """Choose `count` indices by chance; indices with equal keys are chosen together or not at all.

    Fewer are chosen only if the groups do not fit; if none fits, the smallest is chosen.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    shuffled = sorted(groups.values(), key=lambda group: _lot(group[0], seed))
    chosen: list[int] = []
    for group in shuffled:
        if len(chosen) + len(group) <= count:
            chosen.extend(group)
    if not chosen and count > 0:
        chosen = min(shuffled, key=len)
    return frozenset(chosen)


def _lot(index: int, seed: int) -> bytes:
    # A hash and no generator: the same split with every version of Python and NumPy.
    return hashlib.sha256(f"{seed} {index}".encode()).digest()
