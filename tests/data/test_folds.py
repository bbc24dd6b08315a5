import numpy as np
import pytest

from metalad.data.folds import fold_of_each, number_of_each


def different(images: int) -> np.ndarray:
    return np.arange(12 * images, dtype="<u2").view(np.uint8).reshape(images, 2, 4, 3)


@pytest.mark.parametrize(
    ("images", "folds"), [(2, 2), (9, 9), (10, 10), (20, 10), (28, 7), (40, 5), (200, 5), (1000, 5)]
)
def test_few_images_get_more_folds(images: int, folds: int) -> None:
    fold = fold_of_each(different(images))
    assert set(fold.tolist()) == set(range(folds))
    assert np.bincount(fold).max() - np.bincount(fold).min() <= 1


def test_identical_images_are_in_the_same_fold() -> None:
    images = different(12)
    images[7] = images[2]
    fold = fold_of_each(images)
    assert fold[7] == fold[2]
    assert set(fold.tolist()) == set(range(10))
    assert fold_of_each(np.repeat(images[:3], 4, 0), 2).tolist() == [0] * 4 + [1] * 4 + [0] * 4
    # Of copies of one image alone there is no other to fit on.
    assert fold_of_each(np.repeat(images[:1], 4, 0)).tolist() == [0, 1, 2, 3]


def test_images_are_numbered_in_the_order_of_their_first_occurrence() -> None:
    images = different(4)[[2, 0, 2, 1, 0, 3]]
    assert number_of_each(images).tolist() == [0, 1, 0, 2, 1, 3]
    assert number_of_each(images[:1]).tolist() == [0]
    assert fold_of_each(images[:1]).tolist() == [0]
