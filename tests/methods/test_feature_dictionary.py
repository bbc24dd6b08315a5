import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from metalad.methods.feature_dictionary import FeatureDictionary, FeatureDictionaryConfig, principal_components
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (32, 48)


def fitted(**changes: object) -> FeatureDictionary:
    values = {"image_size": SIZE, "samples": 200} | changes
    model = FeatureDictionary(FeatureDictionaryConfig(**values))  # type: ignore[arg-type]
    model.fit(cookies(4, SIZE), 0)
    return model


@pytest.mark.parametrize("variance", [0.5, 0.95, 1.0])
def test_principal_components_match_scikit_learn(variance: float) -> None:
    rng = np.random.default_rng(0)
    points = (rng.standard_normal((300, 12)) * np.geomspace(10, 0.1, 12)).astype(np.float32)
    centre, directions = principal_components(torch.from_numpy(points), variance)
    reference = PCA(None if variance == 1 else variance, svd_solver="full").fit(points)
    np.testing.assert_allclose(centre, reference.mean_, atol=1e-5)
    cosines = np.abs(reference.components_ @ directions.numpy())
    np.testing.assert_allclose(cosines, np.eye(len(reference.components_)), atol=1e-3)


def test_map_is_the_distance_from_the_nearest_entry() -> None:
    """Each window in double precision; the map is compared at window centers."""
    model, image = fitted(stride=4), to_batch(cookies(6, SIZE)[5:])
    assert model.config.grid == (5, 9)
    anomaly_map = model.raw_map(model.residuals(image))[0]
    assert anomaly_map.shape == SIZE
    distances = model.distances(image)[0]
    for row, column in ((0, 0), (2, 5), (4, 8)):
        window = image[:, :, 4 * row : 4 * row + 16, 4 * column : 4 * column + 16]
        reduced = (model.describe(window).double() - model.centre.double()) @ model.projection.double()
        expected = float(torch.cdist(reduced, model.dictionary.double()).min())
        assert float(distances[row, column]) == pytest.approx(expected, rel=1e-4)
    for row, column in ((0, 0), (4, 8)):  # the map is constant outside the outermost centers
        assert float(anomaly_map[31 * (row > 0), 47 * (column > 0)]) == pytest.approx(
            float(distances[row, column]), rel=1e-5
        )


def test_distance_of_one_window_is_shown_around_its_center(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted(stride=8)
    spot = torch.zeros(1, *model.config.grid)
    spot[0, 1, 3] = 1.0
    monkeypatch.setattr(model, "distances", lambda _: spot)
    anomaly_map = model.residuals(torch.zeros(1, 3, *SIZE)).values[0, 0]
    weights = anomaly_map / anomaly_map.sum()
    rows, columns = torch.arange(32) + 0.5, torch.arange(48) + 0.5
    assert float((weights.sum(1) * rows).sum()) == pytest.approx(8 + 8, abs=1e-4)
    assert float((weights.sum(0) * columns).sum()) == pytest.approx(24 + 8, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 5},
        {"stride": 32},
        {"window": 64, "stride": 32},
        {"variance": 0.0},
        {"samples": 3},
        {"dictionary_size": 0},
    ],
)
def test_invalid_settings_raise(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        FeatureDictionaryConfig(**({"image_size": SIZE} | changes))  # type: ignore[arg-type]


def test_zero_images_raise() -> None:
    with pytest.raises(DataError, match="at least 1"):
        FeatureDictionary(FeatureDictionaryConfig()).fit(np.zeros((0, 256, 256, 3), np.uint8), 0)
