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


def test_the_training_mean_scores_zero() -> None:
    model = fitted()
    assert torch.count_nonzero(model.distances(model.mean[None])) == 0


def test_the_map_is_the_mahalanobis_distance() -> None:
    """Against NumPy's covariance and scipy-free inverse at each place, in double precision."""
    model = fitted()
    known = model.features(to_batch(cookies(6, SIZE))).double().numpy()
    new = model.features(to_batch(cookies(8, SIZE)[6:])).double().numpy()
    expected = np.empty(new.shape[:2])
    for place in range(known.shape[1]):
        covariance = np.cov(known[:, place], rowvar=False) + RIDGE * np.eye(12)
        centred = new[:, place] - known[:, place].mean(0)
        expected[:, place] = np.sqrt(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred))
    found = model.distances(torch.from_numpy(new).float()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_more_images_than_a_batch_give_the_moments_of_all() -> None:
    model = fitted(20, grid="s16")
    known = model.features(to_batch(cookies(20, SIZE))).double()
    torch.testing.assert_close(model.mean.double(), known.mean(0), rtol=1e-5, atol=1e-5)
    inverse = (model.whitening.transpose(1, 2) @ model.whitening).double()
    covariance = torch.cov(known[:, 7].T) + RIDGE * torch.eye(12)
    torch.testing.assert_close(inverse[7] @ covariance, torch.eye(12).double(), rtol=0, atol=1e-3)


def test_the_seed_chooses_the_channels() -> None:
    one, other = fitted(), fitted()
    assert torch.equal(one.kept, other.kept)
    other.fit(cookies(6, SIZE), 1)
    assert not torch.equal(one.kept, other.kept)
    assert len(fitted(channels=1000).kept) == 24 + 40 + 112


@pytest.mark.parametrize(("grid", "places"), [("s4", 16 * 20), ("s8", 8 * 10), ("s16", 4 * 5)])
def test_the_grid_is_a_taps(grid: str, places: int) -> None:
    assert len(fitted(2, grid=grid).mean) == places


@pytest.mark.parametrize("changes", [{"grid": "s32"}, {"channels": 0}])
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        PadimConfig(**changes)  # type: ignore[arg-type]


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(DataError, match="at least 2"):
        Padim(PadimConfig(image_size=SIZE)).fit(cookies(1, SIZE), 0)
