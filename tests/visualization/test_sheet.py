import numpy as np
import pytest

from metalad.visualization.sheet import GREEN, INK, TALLEST, Cell, Words, beside, sheet, stacked

RED, BLUE = (200, 0, 0), (0, 0, 200)


def plain(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_pictures_lie_where_their_rows_and_columns_are() -> None:
    rows: list[list[Cell]] = [[plain(80, 40, RED), None], [plain(10, 20, BLUE), np.full((30, 30), 255, np.uint8)]]
    drawn = sheet(rows, (40, 20), 5).copy()
    # The first picture is 80 high, more than one and a half times its width: it is shrunk to 60 and 30.
    assert TALLEST == 1.5
    assert drawn.shape == (5 + 60 + 5 + 20 + 5, 5 + 40 + 5 + 20 + 5, 3)
    assert (drawn[5:65, 5:35] == RED).all()
    assert (drawn[70:80, 5:25] == BLUE).all()  # smaller than its column, and left so
    drawn[5:65, 5:35] = drawn[70:80, 5:25] = 255
    assert (drawn == 255).all()  # None, gaps, and a white picture on white


def test_words_are_written_in_their_colour_and_cut_where_they_are_too_long() -> None:
    short, long = (sheet([[Words(((text, 14, GREEN), (text, 20, INK)))]], (60,), 3) for text in ("I", "I" * 500))
    assert short.shape == long.shape == (3 + 19 + 27 + 3, 66, 3)
    for drawn in (short, long):
        edge = drawn.copy()
        edge[3:-3, 3:-3] = 255
        assert (edge == 255).all()
    ink = (short[3:22] < 128).any(-1)
    assert ink.any()
    assert (long[:, 30:63] < 128).any()
    assert not (short[:, 30:63] < 128).any()
    assert (np.abs(short[3:22].astype(int) - (0x17, 0x69, 0x4A)).sum(-1) < 60).any()


@pytest.mark.parametrize("join", [stacked, beside])
def test_sheets_of_any_size_are_joined_on_white(join: object) -> None:
    turned = join is beside
    one, other = plain(10, 20, RED), plain(30, 5, BLUE)
    joined = beside([one, other]) if turned else stacked([one, other])
    assert joined.shape == ((30, 25, 3) if turned else (40, 20, 3))
    assert (joined[:10, :20] == RED).all()
    assert (joined[:, 20:] == BLUE).all() if turned else (joined[10:, :5] == BLUE).all()
    rest = joined[10:, :20] if turned else joined[10:, 5:]
    assert (rest == 255).all()
