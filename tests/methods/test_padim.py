import numpy as np
import pytest
import torch

from metalad.methods.padim import RIDGE, Padim, PadimConfig
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (64, 80)


def fitted(images: int = 6, **changes: object) -> Padim:
    values = {"image_size": SIZE, "smoothing_sigma": 1.0, "channels": 12} | changes
    model = Padim(PadimConfig(**values))  # type: ignore[arg-type]
    model.fit(cookies(images, SIZE), 0)
    return model


def test_training_mean_has_distance_zero() -> None:
    model = fitted()
    assert torch.count_nonzero(model.distances(model.mean[None])) == 0


def test_distance_is_the_mahalanobis_distance() -> None:
    """The reference uses NumPy's covariance and inverse at each position, in double precision."""
    model = fitted()
    training = model.features(to_batch(cookies(6, SIZE))).double().numpy()
    test = model.features(to_batch(cookies(8, SIZE)[6:])).double().numpy()
    expected = np.empty(test.shape[:2])
    for position in range(training.shape[1]):
        covariance = np.cov(training[:, position], rowvar=False) + RIDGE * np.eye(12)
        centred = test[:, position] - training[:, position].mean(0)
        expected[:, position] = np.sqrt(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred))
    distances = model.distances(torch.from_numpy(test).float()).numpy()
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


def test_moments_of_more_images_than_a_batch() -> None:
    model = fitted(20, grid="s16")
    training = model.features(to_batch(cookies(20, SIZE))).double()
    torch.testing.assert_close(model.mean.double(), training.mean(0), rtol=1e-5, atol=1e-5)
    inverse = (model.whitening.transpose(1, 2) @ model.whitening).double()
    covariance = torch.cov(training[:, 7].T) + RIDGE * torch.eye(12)
    torch.testing.assert_close(inverse[7] @ covariance, torch.eye(12).double(), rtol=0, atol=1e-3)


def test_seed_selects_the_channels() -> None:
    one, other = fitted(), fitted()
    assert torch.equal(one.kept, other.kept)
    other.fit(cookies(6, SIZE), 1)
    assert not torch.equal(one.kept, other.kept)
    assert len(fitted(channels=1000).kept) == 24 + 40 + 112


@pytest.mark.parametrize(("grid", "positions"), [("s4", 16 * 20), ("s8", 8 * 10), ("s16", 4 * 5)])
def test_grid_is_that_of_the_tap(grid: str, positions: int) -> None:
    assert len(fitted(2, grid=grid).mean) == positions


@pytest.mark.parametrize("changes", [{"grid": "s32"}, {"channels": 0}])
def test_invalid_settings_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        PadimConfig(**changes)  # type: ignore[arg-type]


def test_single_image_raises() -> None:
    with pytest.raises(DataError, match="at least 2"):
        Padim(PadimConfig(image_size=SIZE)).fit(cookies(1, SIZE), 0)
