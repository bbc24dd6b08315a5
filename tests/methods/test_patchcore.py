import math

import numpy as np
import pytest
import torch

from metalad.detectors.density.nearest import nearest
from metalad.methods.patchcore import PatchCore, PatchCoreConfig
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (64, 80)


def fitted(images: int = 4, **changes: object) -> PatchCore:
    values = {"image_size": SIZE, "smoothing_sigma": 1.0} | changes
    model = PatchCore(PatchCoreConfig(**values))  # type: ignore[arg-type]
    model.fit(cookies(images, SIZE), 0)
    return model


def test_members_of_the_bank_have_score_zero() -> None:
    model, images = fitted(bank_fraction=1.0), to_batch(cookies(4, SIZE))
    prediction = model.predict(images, model.residuals(images), "raw")
    assert torch.count_nonzero(prediction.score) == 0
    assert torch.count_nonzero(prediction.anomaly_map) == 0


def test_map_is_the_distance_from_the_nearest_feature_in_the_bank() -> None:
    """The reference computes the distances of all pairs in double precision."""
    model, images = fitted(), to_batch(cookies(6, SIZE)[4:])
    pairs = (model.patches(images).double()[..., None, :] - model.bank.double()).square().sum(-1).sqrt()
    expected = pairs.amin(-1)
    torch.testing.assert_close(model.distances(images).double(), expected, rtol=1e-5, atol=0)
    prediction = model.predict(images, model.residuals(images), "raw")
    torch.testing.assert_close(prediction.score.double(), expected.flatten(1).amax(1), rtol=1e-5, atol=0)
    anomaly_map = model.raw_map(model.residuals(images))
    torch.testing.assert_close(anomaly_map[:, 4::8, 4::8].double(), expected, rtol=1e-5, atol=0)


def test_nearest_works_across_chunks() -> None:
    bank, queries = torch.randn(5000, 4), torch.randn(50, 4)
    assert torch.equal(nearest(queries, bank), torch.cdist(queries, bank).argmin(1))
    assert torch.equal(nearest(bank[4090:4100], bank), torch.arange(4090, 4100))


@pytest.mark.parametrize(
    ("fraction", "bank_size", "expected"), [(0.1, 10_000, 0.1), (1.0, 10_000, 1.0), (1.0, 7, None)]
)
def test_bank_has_the_configured_size(fraction: float, bank_size: int, expected: float | None) -> None:
    patches = 3 * 8 * 10
    model = fitted(3, bank_fraction=fraction, bank_size=bank_size)
    assert len(model.bank) == (bank_size if expected is None else math.ceil(expected * patches))


def test_score_is_the_unsmoothed_maximum() -> None:
    images = to_batch(cookies(6, SIZE)[4:])
    sharp, soft = (
        model.predict(images, model.residuals(images), "raw")
        for model in (fitted(smoothing_sigma=0.0), fitted(smoothing_sigma=8.0))
    )
    assert torch.equal(sharp.score, soft.score)
    assert (soft.anomaly_map.flatten(1).amax(1) < soft.score).all()


@pytest.mark.parametrize(
    "changes", [{"bank_fraction": 0.0}, {"bank_fraction": 2.0}, {"bank_size": 0}, {"candidates": 0}]
)
def test_invalid_settings_raise(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        PatchCoreConfig(**changes)  # type: ignore[arg-type]


def test_zero_images_raise() -> None:
    with pytest.raises(DataError, match="at least 1"):
        PatchCore(PatchCoreConfig()).fit(np.zeros((0, 224, 224, 3), np.uint8), 0)


def test_bank_is_selected_from_the_configured_number_of_candidates() -> None:
    model, images = fitted(bank_fraction=1.0, candidates=50), cookies(4, SIZE)
    assert len(model.bank) == 50
    patches = model.patches(to_batch(images)).flatten(0, 2)
    distances = torch.cdist(model.bank, patches, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    torch.testing.assert_close(distances, torch.zeros(50), atol=1e-4, rtol=0)
    assert len({tuple(vector.tolist()) for vector in model.bank}) == 50
    assert torch.equal(model.bank, fitted(bank_fraction=1.0, candidates=50).bank)


@pytest.mark.parametrize("grid", ["s4", "s8", "s16"])
def test_spot_is_localized_on_every_grid(grid: str) -> None:
    model, image = fitted(grid=grid), cookies(5, SIZE)[4:]
    spotted = image.copy()
    spotted[0, 40:48, 56:64] = (255, 0, 255)
    change = (model.distances(to_batch(spotted)) - model.distances(to_batch(image)))[0]
    stride = int(grid[1:])
    assert change.shape == (SIZE[0] // stride, SIZE[1] // stride)
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert abs((row + 0.5) * stride - 44) <= max(stride, 8)
    assert abs((column + 0.5) * stride - 60) <= max(stride, 8)
