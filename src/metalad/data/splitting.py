"""Random but reproducible splits of samples; identical files are assigned to the same part."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from metalad.data.content import content_keys
from metalad.data.listing import in_order
from metalad.data.sample import Sample
from metalad.runtime.errors import DataError

_TEST_FRACTION = 0.2  # of the good images: Head CT has 80 for training, and 20 and the 100 anomalous images for testing


def hold_out(
    good: Sequence[Sample], anomalous: Sequence[Sample], seed: int, source: Path
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split images without a published split into (train, test); the test images are sorted by path.

    The test images are a fifth of the good images, selected with `seed`, and all anomalous images. Identical files are
    assigned to the same part.

    Raises:
        DataError: the good images are copies of one another or of anomalous images; `source` is named in the text.
    """
    keys = content_keys([sample.path for sample in (*good, *anomalous)])
    # A good image with a copy that is labeled anomalous must be in the test part, like its copy.
    tested = {index for index, key in enumerate(keys[: len(good)]) if key in keys[len(good) :]}
    free = [index for index in range(len(good)) if index not in tested]
    count = max(round(_TEST_FRACTION * len(good)) - len(tested), 0)
    tested |= {free[index] for index in choose([keys[index] for index in free], count, seed)}
    train = tuple(sample for index, sample in enumerate(good) if index not in tested)
    if good and not train:
        raise DataError(f"the good images of {source} are copies of one another or of anomalous images")
    return train, in_order((*anomalous, *(good[index] for index in sorted(tested))))


def split_validation(
    samples: Sequence[Sample], fraction: float = 0.1, seed: int = 0
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split samples into (train, validation), both in the given order and not empty.

    Files with identical content are assigned to the same part, unless one part would be empty.

    Args:
        samples: at least two.
        fraction: of the samples that are used for validation, in (0, 1); their number is rounded.
        seed: of the random split.

    Raises:
        DataError: fewer than two samples.
    """
    if len(samples) < 2:
        raise DataError(f"found {len(samples)} good images, but at least 2 are needed, for training and for validation")
    count = min(max(round(fraction * len(samples)), 1), len(samples) - 1)
    chosen = choose(content_keys([sample.path for sample in samples]), count, seed)
    if not 0 < len(chosen) < len(samples):  # all files are copies of one another
        chosen = choose([str(index) for index in range(len(samples))], count, seed)
    train = tuple(sample for index, sample in enumerate(samples) if index not in chosen)
    return train, tuple(samples[index] for index in sorted(chosen))


def choose(keys: Sequence[str], count: int, seed: int) -> frozenset[int]:
    """Select `count` random indices; either all or none of the indices with the same key are selected.

    Fewer are selected if no further group fits; if no group fits at all, the smallest group is selected.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    shuffled = sorted(groups.values(), key=lambda group: _random_order_key(group[0], seed))
    chosen: list[int] = []
    for group in shuffled:
        if len(chosen) + len(group) <= count:
            chosen.extend(group)
    if not chosen and count > 0:
        chosen = min(shuffled, key=len)
    return frozenset(chosen)


def _random_order_key(index: int, seed: int) -> bytes:
    # A hash instead of a random generator gives the same split with all versions of Python and NumPy.
    return hashlib.sha256(f"{seed} {index}".encode()).digest()


def subsampled_indices(count: int, limit: int) -> Int[np.ndarray, " _limit"]:
    """Return the indices of at most `limit` of `count` samples, evenly spaced over all."""
    if count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(int)


def subsampled_around(count: int, limit: int, chosen: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " _limit"]:
    """Return the chosen indices, and others evenly spaced between them, at most `limit` of `count` in all, sorted."""
    others = np.setdiff1d(np.arange(count), chosen)
    return np.sort(np.concatenate([chosen, others[subsampled_indices(len(others), limit - len(chosen))]]))
