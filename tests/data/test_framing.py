import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import UInt8

from metalad.data.framing import Framing
from metalad.data.images import resize_image, resize_map

LENGTHS = st.integers(1, 90)
SIZES = st.tuples(LENGTHS, LENGTHS)


def noise(seed: int, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_without_scale_an_image_is_resized_to_the_size_of_the_model() -> None:
    framing, image = Framing((32, 64)), noise(0, 40, 30)
    anomaly_map = noise(1, 32, 64)[..., 0].astype(np.float32)
    assert np.array_equal(framing.place(image), resize_image(image, (32, 64)))
    assert np.array_equal(framing.cut(anomaly_map, (40, 30)), anomaly_map)
    assert np.array_equal(framing.at_own_size(anomaly_map, (40, 30)), resize_map(anomaly_map, (40, 30)))


@given(SIZES, st.floats(0.05, 3))
def test_with_a_scale_every_image_is_whole_and_in_proportion(own: tuple[int, int], scale: float) -> None:
    framing = Framing((48, 64), scale)
    rows, columns = framing.inside(own)
    assert 0 <= rows.start < rows.stop <= 48
    assert 0 <= columns.start < columns.stop <= 64
    height, width = rows.stop - rows.start, columns.stop - columns.start
    used = min(scale, 48 / own[0], 64 / own[1])
    assert abs(height - own[0] * used) <= 1
    assert abs(width - own[1] * used) <= 1
    # In the middle, so that models of positions see an object where it was in training.
    assert abs(rows.start - (48 - rows.stop)) <= 1
    assert abs(columns.start - (64 - columns.stop)) <= 1


def test_an_image_at_its_own_scale_returns_unchanged_and_is_continued_by_reflection() -> None:
    framing, image = Framing((32, 64), 1.0), noise(0, 20, 30)
    placed = framing.place(image)
    assert placed.shape == (32, 64, 3)
    inside = framing.inside((20, 30))
    assert np.array_equal(placed[inside], image)
    rows, columns = inside
    assert np.array_equal(placed[rows.start - 1, columns], image[0])
    assert np.array_equal(placed[rows, columns.stop], image[:, -1])
    assert set(map(tuple, placed.reshape(-1, 3))) == set(map(tuple, image.reshape(-1, 3)))  # nothing new


def test_the_map_of_an_image_has_none_of_what_continues_it() -> None:
    framing = Framing((32, 64), 0.5)
    anomaly_map = np.full((32, 64), 9, np.float32)
    anomaly_map[framing.inside((40, 60))] = 1
    assert framing.cut(anomaly_map, (40, 60)).shape == (20, 30)
    own = framing.at_own_size(anomaly_map, (40, 60))
    assert own.shape == (40, 60)
    assert (own == 1).all()


def test_a_point_returns_to_where_it_was() -> None:
    framing, image = Framing((64, 96), 0.5), np.zeros((100, 60, 3), np.uint8)
    image[70:74, 20:24] = 255
    own = framing.at_own_size(framing.place(image)[..., 0].astype(np.float32), (100, 60))
    row, column = np.unravel_index(own.argmax(), own.shape)
    assert 70 <= row < 74
    assert 20 <= column < 24


def test_a_reconstruction_of_a_lower_resolution_returns_to_the_image() -> None:
    framing = Framing((32, 64), 0.5)
    picture = np.zeros((16, 32, 3), np.uint8)
    rows, columns = framing.inside((40, 60))
    picture[rows.start // 2 : rows.stop // 2, columns.start // 2 : columns.stop // 2] = 200
    own = framing.picture_at_own_size(picture, (40, 60))
    assert own.shape == (40, 60, 3)
    assert (own[4:-4, 6:-6] == 200).all()


@pytest.mark.parametrize("own", [(400, 20), (20, 700), (500, 500)])
def test_an_image_that_does_not_fit_is_reduced(own: tuple[int, int]) -> None:
    framing = Framing((48, 64), 1.0)
    assert framing.place(noise(0, *own)).shape == (48, 64, 3)
    rows, columns = framing.inside(own)
    assert rows == slice(0, 48) or columns == slice(0, 64)
