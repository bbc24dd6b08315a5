import numpy as np
import pytest

from metalad.visualization.sheet import (
    GREEN,
    INK,
    MAX_ASPECT,
    Caption,
    SheetCell,
    concatenate_horizontally,
    concatenate_vertically,
    sheet,
)

RED, BLUE = (200, 0, 0), (0, 0, 200)


def plain(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_pictures_are_placed_in_their_rows_and_columns() -> None:
    rows: list[list[SheetCell]] = [[plain(80, 40, RED), None], [plain(10, 20, BLUE), np.full((30, 30), 255, np.uint8)]]
    picture = sheet(rows, (40, 20), 5).copy()
    # The first picture is 80 px high, more than 1.5 times the column width of 40 px: it is shrunk to 60 × 30 px.
    assert MAX_ASPECT == 1.5
    assert picture.shape == (5 + 60 + 5 + 20 + 5, 5 + 40 + 5 + 20 + 5, 3)
    assert (picture[5:65, 5:35] == RED).all()
    assert (picture[70:80, 5:25] == BLUE).all()  # smaller than its column: not enlarged
    picture[5:65, 5:35] = picture[70:80, 5:25] = 255
    assert (picture == 255).all()  # None, gaps, and a white picture on white


def test_captions_have_their_color_and_long_lines_are_truncated() -> None:
    short, long = (sheet([[Caption(((text, 14, GREEN), (text, 20, INK)))]], (60,), 3) for text in ("I", "I" * 500))
    assert short.shape == long.shape == (3 + 19 + 27 + 3, 66, 3)
    for captions in (short, long):
        edge = captions.copy()
        edge[3:-3, 3:-3] = 255
        assert (edge == 255).all()
    ink = (short[3:22] < 128).any(-1)
    assert ink.any()
    assert (long[:, 30:63] < 128).any()
    assert not (short[:, 30:63] < 128).any()
    assert (np.abs(short[3:22].astype(int) - (0x17, 0x69, 0x4A)).sum(-1) < 60).any()


@pytest.mark.parametrize("join", [concatenate_vertically, concatenate_horizontally])
def test_sheets_of_different_sizes_are_concatenated_on_white(join: object) -> None:
    horizontal = join is concatenate_horizontally
    first, second = plain(10, 20, RED), plain(30, 5, BLUE)
    joined = concatenate_horizontally([first, second]) if horizontal else concatenate_vertically([first, second])
    assert joined.shape == ((30, 25, 3) if horizontal else (40, 20, 3))
    assert (joined[:10, :20] == RED).all()
    assert (joined[:, 20:] == BLUE).all() if horizontal else (joined[10:, :5] == BLUE).all()
    empty = joined[10:, :20] if horizontal else joined[10:, 5:]
    assert (empty == 255).all()
