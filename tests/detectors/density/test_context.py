import numpy as np
import pytest
import torch

from metalad.detectors.density.context import COMPONENTS, MOST_PLACES, REACH, ContextPrediction

CHANNELS, GRID = 80, (10, 12)
SHARE = torch.linspace(0.5, 1.5, CHANNELS)


def fields(images: int, seed: int = 0) -> torch.Tensor:
    """Maps that vary slowly from place to place, and a little by themselves: what lies around says much."""
    rng, mixing = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    slow = torch.nn.functional.interpolate(torch.randn(images, 2, 2, 2, generator=rng), GRID, mode="bilinear")
    mixed = torch.einsum("bcxy,dc->bdxy", slow, torch.randn(CHANNELS, 2, generator=mixing))
    return mixed + 0.05 * torch.randn(mixed.shape, generator=rng)


def test_a_place_is_foretold_from_afar_alone() -> None:
    """The gradient of what is expected at a place is 0 by it and by those beside it, and not by the others."""
    model = ContextPrediction.fitted(fields(8), SHARE, 20, 0)
    components = model.components(fields(2, 1)).requires_grad_()
    down, across = model.grid
    for row, column in ((0, 0), (2, 3), (down - 1, 1)):
        broadcast = model.expected(components)[:, row * across + column].sum()
        (gradient,) = torch.autograd.grad(broadcast, components)
        seen = gradient.abs().sum((0, 2)).reshape(down, across) > 0
        apart = np.maximum(*np.abs(np.indices((down, across)) - np.array([row, column])[:, None, None]))
        np.testing.assert_array_equal(seen.numpy(), apart > REACH)


def test_untaught_it_expects_the_usual() -> None:
    """The distance is then the length of the main components of the deviation from the mean at the place."""
    known, new = fields(8), fields(2, 1)
    distances = ContextPrediction.fitted(known, SHARE, 0, 0)(new)

    def pooled(maps: torch.Tensor) -> np.ndarray:
        means: np.ndarray = maps.double().numpy().reshape(-1, CHANNELS, 5, 2, 6, 2).mean((3, 5))
        return means

    mean = pooled(known).mean(0)
    channel_weights = SHARE.double().numpy()
    deviations = np.moveaxis(pooled(known) - mean, 1, -1).reshape(-1, CHANNELS) * channel_weights
    _, singular, directions = np.linalg.svd(deviations, full_matrices=False)
    unit = np.sqrt(np.square(singular[:COMPONENTS]).sum() / len(deviations) / COMPONENTS)
    expected = np.linalg.norm(
        np.moveaxis(pooled(new) - mean, 1, -1) * channel_weights @ directions[:COMPONENTS].T / unit, axis=-1
    )
    wide = torch.nn.functional.interpolate(torch.from_numpy(expected)[:, None], GRID, mode="bilinear")[:, 0]
    torch.testing.assert_close(distances.double(), wide, rtol=1e-3, atol=1e-3)


def test_it_learns_what_surroundings_say() -> None:
    new = fields(16, 1)
    untaught, taught = (ContextPrediction.fitted(fields(64), SHARE, steps, 0)(new) for steps in (0, 200))
    assert taught.mean() < 0.8 * untaught.mean()


def test_what_is_out_of_line_lies_farther_off() -> None:
    """A patch of another image, usual in itself, is told by its surroundings."""
    model, new = ContextPrediction.fitted(fields(64), SHARE, 300, 0), fields(16, 1)
    pasted = new.clone()
    pasted[:, :, 4:6, 4:6] = new.roll(1, 0)[:, :, 4:6, 4:6]
    before, after = model(new), model(pasted)
    assert (after - before)[:, 4:6, 4:6].mean() > 0.25 * before.mean()


def test_chance_is_the_seeds_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (ContextPrediction.fitted(fields(4), SHARE, 5, seed)(fields(2, 1)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("grid", [(4, 1), (64, 48), (65, 30), (200, 100)])
def test_any_grid_has_places_enough_and_not_too_many(grid: tuple[int, int]) -> None:
    model = ContextPrediction(3, grid)
    maps = torch.zeros(1, 3, *grid)
    assert max(model.grid) <= MOST_PLACES
    assert model._pooled(maps).shape[-2:] == model.grid
    assert (~model.encoder.hidden).any(1).all() == (max(model.grid) > 2 * REACH + 1)


def test_images_that_are_all_the_same_leave_numbers_finite() -> None:
    same = fields(1).expand(3, -1, -1, -1)
    assert ContextPrediction.fitted(same, SHARE, 3, 0)(fields(1, 1)).isfinite().all()
