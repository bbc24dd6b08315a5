import pytest
import torch

from metalad.nn.perlin import perlin_noise, random_perlin_noise


@pytest.mark.parametrize("cells", [(1, 1), (4, 2), (8, 16)])
def test_noise_is_0_at_the_corners_of_cells_and_within_1(cells: tuple[int, int]) -> None:
    torch.manual_seed(0)
    noise = perlin_noise((64, 96), cells)
    assert noise.shape == (64, 96)
    assert noise.abs().max() <= 1
    assert noise.std() > 0.1
    torch.testing.assert_close(noise[:: 64 // cells[0], :: 96 // cells[1]], torch.zeros(cells))


def test_noise_of_one_cell_is_the_interpolated_ramp_of_its_corners() -> None:
    """On the first row, only the corners above count: fade(x) blends the ramps that start at both."""
    torch.manual_seed(3)
    angles = 2 * torch.pi * torch.rand(2, 2)
    torch.manual_seed(3)
    noise = perlin_noise((8, 8), (1, 1))
    x = torch.arange(8) / 8
    fade = 6 * x**5 - 15 * x**4 + 10 * x**3
    left, right = x * angles[0, 0].sin(), (x - 1) * angles[0, 1].sin()
    torch.testing.assert_close(noise[0], 2**0.5 * ((1 - fade) * left + fade * right))


def test_noise_is_smooth_across_cells() -> None:
    torch.manual_seed(0)
    noise = perlin_noise((128, 128), (4, 4))
    steps = torch.cat([noise.diff(dim=0).flatten(), noise.diff(dim=1).flatten()])
    assert steps.abs().max() < 4 * 4 / 128  # the steepest slope is a few units per cell


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (64, 40)])
def test_random_noise_depends_on_the_seed_alone(size: tuple[int, int]) -> None:
    fields = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        fields.append(random_perlin_noise(6, size))
    assert fields[0].shape == (6, *size)
    assert torch.equal(fields[0], fields[1])
    assert size == (1, 1) or not torch.equal(fields[0], fields[2])
