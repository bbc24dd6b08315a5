import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.detectors.density.codebook import nearest
from metalad.methods.patchcore import PatchCore, PatchCoreConfig, coreset
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (64, 80)


def fitted(images: int = 4, **changes: object) -> PatchCore:
    values = {"image_size": SIZE, "smoothing_sigma": 1.0} | changes
    model = PatchCore(PatchCoreConfig(**values))  # type: ignore[arg-type]
    model.fit(cookies(images, SIZE), 0)
    return model


def test_a_bank_member_scores_zero() -> None:
    model, images = fitted(bank_fraction=1.0), cookies(4, SIZE)
    prediction = model(to_batch(images))
    assert torch.count_nonzero(prediction.score) == 0
    assert torch.count_nonzero(prediction.anomaly_map) == 0


def test_the_map_is_the_distance_from_the_nearest_in_the_bank() -> None:
    """Against the plain distances of all pairs, in double precision."""
    model, images = fitted(), to_batch(cookies(6, SIZE)[4:])
    pairs = (model.patches(images).double()[..., None, :] - model.bank.double()).square().sum(-1).sqrt()
    expected = pairs.amin(-1)
    torch.testing.assert_close(model.distances(images).double(), expected, rtol=1e-5, atol=0)
    prediction = model(images)
    torch.testing.assert_close(prediction.score.double(), expected.flatten(1).amax(1), rtol=1e-5, atol=0)
    shown = model.raw_map(model.residuals(images))
    torch.testing.assert_close(shown[:, 4::8, 4::8].double(), expected, rtol=1e-5, atol=0)


@given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_the_coreset_is_the_plain_greedy_one(count: int, points: int, seed: int) -> None:
    cloud = torch.randn(max(count, points), 3, generator=torch.Generator().manual_seed(seed))
    chosen = coreset(cloud, count, seed).tolist()
    assert len(set(chosen)) == count
    distances = torch.cdist(cloud.double(), cloud.double())
    for number in range(1, count):
        left = distances[:, chosen[:number]].amin(1)
        assert left[chosen[number]] == pytest.approx(float(left.max()), rel=1e-5)


def test_repeated_points_are_each_chosen_once() -> None:
    assert sorted(coreset(torch.ones(5, 2), 5, 0).tolist()) == [0, 1, 2, 3, 4]


def test_the_nearest_is_found_across_chunks() -> None:
    bank, queries = torch.randn(5000, 4), torch.randn(50, 4)
    assert torch.equal(nearest(queries, bank), torch.cdist(queries, bank).argmin(1))
    assert torch.equal(nearest(bank[4090:4100], bank), torch.arange(4090, 4100))


@pytest.mark.parametrize(("fraction", "most", "expected"), [(0.1, 10_000, 0.1), (1.0, 10_000, 1.0), (1.0, 7, None)])
def test_the_bank_has_the_wanted_size(fraction: float, most: int, expected: float | None) -> None:
    patches = 3 * 8 * 10
    model = fitted(3, bank_fraction=fraction, bank_size=most)
    assert len(model.bank) == (most if expected is None else math.ceil(expected * patches))


def test_the_most_abnormal_patch_counts_unsmoothed() -> None:
    images = to_batch(cookies(6, SIZE)[4:])
    sharp, soft = fitted(smoothing_sigma=0.0), fitted(smoothing_sigma=8.0)
    assert torch.equal(sharp(images).score, soft(images).score)
    assert (soft(images).anomaly_map.flatten(1).amax(1) < soft(images).score).all()


@pytest.mark.parametrize(
    "changes", [{"bank_fraction": 0.0}, {"bank_fraction": 2.0}, {"bank_size": 0}, {"candidates": 0}]
)
def test_impossible_settings_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        PatchCoreConfig(**changes)  # type: ignore[arg-type]


def test_no_image_is_too_few() -> None:
    with pytest.raises(DataError, match="at least 1"):
        PatchCore(PatchCoreConfig()).fit(np.zeros((0, 224, 224, 3), np.uint8), 0)


def test_the_bank_is_chosen_from_as_many_patches_as_wanted() -> None:
    model, images = fitted(bank_fraction=1.0, candidates=50), cookies(4, SIZE)
    assert len(model.bank) == 50
    patches = model.patches(to_batch(images)).flatten(0, 2)
    apart = torch.cdist(model.bank, patches, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    torch.testing.assert_close(apart, torch.zeros(50), atol=1e-4, rtol=0)
    assert len({tuple(vector.tolist()) for vector in model.bank}) == 50
    assert torch.equal(model.bank, fitted(bank_fraction=1.0, candidates=50).bank)


@pytest.mark.parametrize("grid", ["s4", "s8", "s16"])
def test_a_spot_shows_at_its_place_on_every_grid(grid: str) -> None:
    model, image = fitted(grid=grid), cookies(5, SIZE)[4:]
    spotted = image.copy()
    spotted[0, 40:48, 56:64] = (255, 0, 255)
    change = (model.distances(to_batch(spotted)) - model.distances(to_batch(image)))[0]
    stride = int(grid[1:])
    assert change.shape == (SIZE[0] // stride, SIZE[1] // stride)
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert abs((row + 0.5) * stride - 44) <= max(stride, 8)
    assert abs((column + 0.5) * stride - 60) <= max(stride, 8)
