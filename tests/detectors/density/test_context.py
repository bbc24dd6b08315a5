import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from metalad.detectors.density.context import COMPONENTS, MAX_POSITIONS, REACH, ContextPrediction

CHANNELS, GRID = 80, (10, 12)
CHANNEL_WEIGHTS = torch.linspace(0.5, 1.5, CHANNELS)


def fields(images: int, seed: int = 0) -> torch.Tensor:
    """Spatially smooth maps plus a little noise: the surroundings of a position predict it well."""
    rng, mixing = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    slow = torch.nn.functional.interpolate(torch.randn(images, 2, 2, 2, generator=rng), GRID, mode="bilinear")
    mixed = torch.einsum("bcxy,dc->bdxy", slow, torch.randn(CHANNELS, 2, generator=mixing))
    return mixed + 0.05 * torch.randn(mixed.shape, generator=rng)


def fitted(maps: torch.Tensor, steps: int, seed: int = 0, components: int = COMPONENTS) -> ContextPrediction:
    return ContextPrediction.fitted(torch.split(maps, 3), GRID, CHANNEL_WEIGHTS, steps, seed, components)


def test_a_position_is_predicted_only_from_positions_farther_than_reach() -> None:
    """The gradient of a prediction is 0 for the position and its neighbors, and not 0 for all others."""
    model = fitted(fields(8), 20)
    components = model.components(fields(2, 1)).requires_grad_()
    down, across = model.grid
    for row, column in ((0, 0), (2, 3), (down - 1, 1)):
        prediction = model.expected(components)[:, row * across + column].sum()
        (gradient,) = torch.autograd.grad(prediction, components)
        used = gradient.abs().sum((0, 2)).reshape(down, across) > 0
        distance = np.maximum(*np.abs(np.indices((down, across)) - np.array([row, column])[:, None, None]))
        np.testing.assert_array_equal(used.numpy(), distance > REACH)


@pytest.mark.parametrize("components", [1, COMPONENTS, 16])
def test_an_untrained_model_predicts_the_mean(components: int) -> None:
    """The distance is then the norm of the principal components of the deviation from the mean at the position."""
    known, new = fields(8), fields(2, 1)
    distances = fitted(known, 0, components=components)(new)

    def pooled(maps: torch.Tensor) -> np.ndarray:
        means: np.ndarray = maps.double().numpy().reshape(-1, CHANNELS, 5, 2, 6, 2).mean((3, 5))
        return means

    mean = pooled(known).mean(0)
    channel_weights = CHANNEL_WEIGHTS.double().numpy()
    deviations = np.moveaxis(pooled(known) - mean, 1, -1).reshape(-1, CHANNELS) * channel_weights
    _, singular, directions = np.linalg.svd(deviations, full_matrices=False)
    scale = np.sqrt(np.square(singular[:components]).sum() / len(deviations) / components)
    expected = np.linalg.norm(
        np.moveaxis(pooled(new) - mean, 1, -1) * channel_weights @ directions[:components].T / scale, axis=-1
    )
    upsampled = torch.nn.functional.interpolate(torch.from_numpy(expected)[:, None], GRID, mode="bilinear")[:, 0]
    torch.testing.assert_close(distances.double(), upsampled, rtol=1e-3, atol=1e-3)


def test_distances_are_smoothed_on_the_pooled_grid() -> None:
    plain = fitted(fields(8), 5)
    smoothing = ContextPrediction(CHANNELS, GRID, smoothing_sigma=1.5)
    smoothing.mean, smoothing.directions = plain.mean, plain.directions
    smoothing.load_state_dict(plain.state_dict())
    components = plain.components(fields(2, 1))
    with torch.no_grad():
        distances = torch.linalg.vector_norm(components - plain.expected(components), dim=2).reshape(2, *plain.grid)
        expected = gaussian_filter(distances.numpy(), (0, 1.5, 1.5), mode="reflect", truncate=4)
        upsampled = torch.nn.functional.interpolate(torch.from_numpy(expected)[:, None], GRID, mode="bilinear")[:, 0]
        torch.testing.assert_close(smoothing(fields(2, 1)), upsampled, rtol=1e-4, atol=1e-5)


def test_training_reduces_the_distances_on_new_images() -> None:
    new = fields(16, 1)
    untrained, trained = (fitted(fields(64), steps)(new) for steps in (0, 200))
    assert trained.mean() < 0.8 * untrained.mean()


def test_features_that_do_not_fit_their_surroundings_have_larger_distances() -> None:
    """A patch of another good image increases the distance, because it does not fit its surroundings."""
    model, new = fitted(fields(64), 300), fields(16, 1)
    pasted = new.clone()
    pasted[:, :, 4:6, 4:6] = new.roll(1, 0)[:, :, 4:6, 4:6]
    before, after = model(new), model(pasted)
    assert (after - before)[:, 4:6, 4:6].mean() > 0.25 * before.mean()


def test_the_result_depends_only_on_the_seed_and_the_global_state_is_unchanged() -> None:
    state = torch.get_rng_state()
    models = [fitted(fields(4), 5, seed) for seed in (0, 0, 1)]
    first, same, different = (model(fields(2, 1)) for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, different)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("grid", [(4, 1), (64, 48), (65, 30), (200, 100)])
def test_the_pooled_grid_has_at_most_max_positions_per_side(grid: tuple[int, int]) -> None:
    model = ContextPrediction(3, grid)
    maps = torch.zeros(1, 3, *grid)
    assert max(model.grid) <= MAX_POSITIONS
    assert model._pooled(maps).shape[-2:] == model.grid
    assert (~model.encoder.hidden).any(1).all() == (max(model.grid) > 2 * REACH + 1)


def test_identical_images_give_finite_distances() -> None:
    same = fields(1).expand(3, -1, -1, -1)
    assert fitted(same, 3)(fields(1, 1)).isfinite().all()
