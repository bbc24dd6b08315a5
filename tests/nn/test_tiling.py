import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalad.nn.tiling import TILES_AT_ONCE, assemble, check_tiles, cut, mean_over_tiles, random_tiles, tile_starts
from metalad.runtime.errors import ConfigError

SIZES = st.tuples(st.integers(5, 40), st.integers(5, 40))
TILES = st.integers(1, 5).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(1, tile)))


def counted(height: int, width: int, tile: int, stride: int) -> Tensor:
    """Return the number of tiles that contain each pixel, by a loop over pixels."""
    counts = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            above = sum(top <= row < top + tile for top in tile_starts(height, tile, stride))
            beside = sum(left <= column < left + tile for left in tile_starts(width, tile, stride))
            counts[row, column] = above * beside
    return counts


@settings(max_examples=50, deadline=None)
@given(SIZES, TILES)
def test_tiles_cover_every_pixel_and_weights_sum_to_1(size: tuple[int, int], tile: tuple[int, int]) -> None:
    counts = counted(*size, *tile)
    assert counts.min() >= 1
    ones = cut(torch.ones(1, *size), *tile)
    assert len(ones) == counts.sum() / tile[0] ** 2
    torch.testing.assert_close(assemble(ones, *size, tile[1]), torch.ones(1, *size))


@settings(max_examples=50, deadline=None)
@given(SIZES, TILES)
def test_assembled_tiles_equal_the_image(size: tuple[int, int], tile: tuple[int, int]) -> None:
    image = torch.rand(2, *size)
    torch.testing.assert_close(assemble(cut(image, *tile), *size, tile[1]), image)


@settings(max_examples=50, deadline=None)
@given(SIZES, TILES)
def test_overlapping_tiles_are_averaged_per_pixel(size: tuple[int, int], tile: tuple[int, int]) -> None:
    """Each tile is constant; a pixel must be the mean of the tiles that contain it."""
    (height, width), (side, stride) = size, tile
    positions = [(top, left) for top in tile_starts(height, *tile) for left in tile_starts(width, *tile)]
    values = torch.rand(len(positions))
    result = assemble(values[:, None, None, None].expand(-1, 1, side, side), height, width, stride)[0]
    for row, column in [(0, 0), (height - 1, width - 1), (height // 2, width // 3)]:
        containing = [
            values[i] for i, (top, left) in enumerate(positions) if 0 <= row - top < side and 0 <= column - left < side
        ]
        assert result[row, column].item() == pytest.approx(float(sum(containing)) / len(containing), abs=1e-6)


def test_tiles_of_the_paper_reach_the_border() -> None:
    starts = tile_starts(512, 128, 30)
    assert starts[:3] == (0, 30, 60)
    assert starts[-2:] == (360, 384)
    assert tile_starts(128, 128, 30) == (0,)
    assert tile_starts(256, 128, 128) == (0, 128)


def test_each_tile_is_measured_once() -> None:
    images, sizes = torch.rand(3, 2, 40, 50), list[int]()

    def measure(tiles: Tensor) -> Tensor:
        sizes.append(len(tiles))
        return tiles.mean((1, 2, 3), keepdim=True).expand(-1, 1, 8, 8)

    result = mean_over_tiles(measure, images, 8, 3)
    expected = cut(images[1], 8, 3).mean((1, 2, 3))[:, None, None, None].expand(-1, 1, 8, 8)
    torch.testing.assert_close(result[1], assemble(expected, 40, 50, 3))
    assert max(sizes) == TILES_AT_ONCE
    assert sum(sizes) == 3 * len(tile_starts(40, 8, 3)) * len(tile_starts(50, 8, 3))


def test_random_tiles_come_from_their_image_at_all_positions() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(6 * 7.0).reshape(1, 1, 6, 7)
    tiles = random_tiles(ramp.expand(500, 1, 6, 7) + 100 * torch.arange(500)[:, None, None, None], 4)
    corners = tiles[:, 0, 0, 0] - 100 * torch.arange(500)
    positions = {(int(corner) // 7, int(corner) % 7) for corner in corners}
    assert positions == {(top, left) for top in range(3) for left in range(4)}
    within = tiles[:, 0] - tiles[:, 0, :1, :1]
    assert torch.equal(within, ramp[0, 0, :4, :4].expand(500, 4, 4))


@pytest.mark.parametrize(
    ("tile", "stride", "message"),
    [(8, 4, "tile is 8"), (65, 4, "tile is 65"), (32, 0, "stride is 0"), (32, 33, "stride is 33")],
)
def test_invalid_tiles_raise_config_error(tile: int, stride: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tiles((64, 80), tile, stride)
