"""Calibration: selection of its kind, moments, distances, and likelihoods."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import multivariate_normal
from torch import Tensor

from metalad.detectors import calibration
from metalad.detectors.calibration import (
    BRIGHTNESS_BINS,
    EDGE_BINS,
    KINDS,
    MIN_VARIANCE,
    Calibration,
    Content,
    Kind,
    choose,
)
from metalad.detectors.residuals import Residuals

SIZE = 16
MIXING = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.3, -0.4, 0.2]])
"""Gives correlated color channels."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated_noise(seed: int, images: int) -> Tensor:
    white = torch.randn(images, 3, SIZE, SIZE, generator=generator(seed))
    return torch.einsum("ij,njhw->nihw", MIXING, white)


def pictures(seed: int, images: int) -> Tensor:
    """Return images of blobs at random positions."""
    noise = np.random.default_rng(seed).random((images, 3, SIZE, SIZE))
    smooth = ndimage.gaussian_filter(noise, 1.5, axes=(2, 3), mode="wrap")
    return torch.from_numpy((smooth - smooth.min()) / (smooth.max() - smooth.min())).float()


def residuals(seed: int, images: int) -> Residuals:
    return Residuals(correlated_noise(seed, images), pictures(seed, images))


def larger_on_the_left(seed: int, images: int) -> Residuals:
    """Return residuals that are large on the left, independent of the image."""
    return Residuals(correlated_noise(seed, images) * torch.linspace(2, 0.2, SIZE), pictures(seed, images))


def larger_where_bright(seed: int, images: int) -> Residuals:
    """Return residuals that are large where the image is bright."""
    reconstruction = pictures(seed, images)
    scale = (0.1 + reconstruction.mean(1, keepdim=True)) ** 2
    return Residuals(correlated_noise(seed, images) * scale, reconstruction)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("make", "kind"), [(larger_on_the_left, "position"), (larger_where_bright, "content"), (residuals, "none")]
)
def test_the_kind_with_the_highest_likelihood_is_selected(
    make: Callable[[int, int], Residuals], kind: Kind, seed: int
) -> None:
    summary = choose(make(seed, 30), make(seed + 100, 6))
    assert summary.kind == kind, summary
    assert summary.log_likelihood[kind] == max(summary.log_likelihood.values())


def test_the_selection_does_not_depend_on_the_scale_of_training_residuals() -> None:
    training, held_out = larger_on_the_left(0, 30), larger_on_the_left(1, 6)
    smaller = training._replace(values=0.3 * training.values)
    assert choose(smaller, held_out).log_likelihood == pytest.approx(
        choose(training, held_out).log_likelihood, abs=1e-3
    )


def test_content_is_not_available_without_a_reconstruction() -> None:
    summary = choose(Residuals(correlated_noise(0, 8)), Residuals(correlated_noise(1, 4)))
    assert set(summary.log_likelihood) == {"none", "position"}


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_training_residuals_have_unit_moments(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    monkeypatch.setattr(calibration, "POOLING_SIGMA", 0.0)
    known = larger_on_the_left(0, 40)
    fitted = Calibration.fit(kind, known, prior_images=1e-6)
    whitened = fitted.whiten(known).double()
    everywhere = torch.einsum("nihw,njhw->ij", whitened, whitened) / (40 * SIZE * SIZE)
    torch.testing.assert_close(everywhere, torch.eye(3).double(), atol=0.01, rtol=0)
    if kind == "position":
        here = torch.einsum("nihw,njhw->hwij", whitened, whitened) / 40
        torch.testing.assert_close(here, torch.eye(3).double().expand_as(here), atol=0.05, rtol=0)
    assert fitted(known).mean().item() == pytest.approx(1, abs=0.01)


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
@settings(deadline=None, max_examples=20)
def test_linear_combinations_of_channels_give_the_same_distances(seed: int, kind: Kind) -> None:
    """Mahalanobis distances do not change under invertible linear maps."""
    known, new = residuals(seed, 6), residuals(seed + 1, 2)
    mixing = torch.linalg.qr(torch.randn(3, 3, generator=generator(seed)))[0] * torch.tensor([1.0, 2.0, 3.0])
    mixed = [part._replace(values=torch.einsum("ij,njhw->nihw", mixing, part.values)) for part in (known, new)]
    found, expected = Calibration.fit(kind, mixed[0])(mixed[1]), Calibration.fit(kind, known)(new)
    # The minimum variance is added before or after mixing.
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_no_variance_is_below_the_minimum(kind: Kind) -> None:
    """A residual that is 0 on every good image has the variance of pixel rounding."""
    zero = Residuals(torch.zeros(4, 3, SIZE, SIZE), pictures(0, 4))
    fitted = Calibration.fit(kind, zero)
    off = zero._replace(values=torch.full((4, 3, SIZE, SIZE), 1 / 255))
    torch.testing.assert_close(fitted(zero), torch.zeros(4, SIZE, SIZE))
    torch.testing.assert_close(fitted(off), torch.full((4, SIZE, SIZE), (1 / 255) ** 2 / MIN_VARIANCE))


@pytest.mark.parametrize("kind", KINDS)
def test_perfectly_correlated_channels_give_finite_distances(kind: Kind) -> None:
    """Rounding can make their moments indefinite; a model after few training steps has such channels."""
    brightness = 10 * (torch.rand(6, 1, SIZE, SIZE, generator=generator(0)) + 1)
    known = Residuals(brightness * torch.tensor([1.0, 0.7, 1.3])[:, None, None], pictures(0, 6))
    distances = Calibration.fit(kind, known)(known)
    assert distances.isfinite().all()
    assert float(distances.mean()) == pytest.approx(1 / 3, rel=0.01)  # one direction of three varies


def covariances(fitted: Calibration, of: Residuals) -> Tensor:
    """Return the second moment of each pixel: [images, height, width, channels, channels]."""
    moments = torch.linalg.inv(fitted.whitening.double().mT @ fitted.whitening.double())
    if fitted.content is not None:
        assert of.reconstruction is not None
        by_pixel: Tensor = moments[fitted.content(of.reconstruction)]
        return by_pixel
    cells = moments.reshape(-1, *of.values.shape[-2:], 3, 3) if fitted.kind == "position" else moments[None, None]
    expanded: Tensor = cells.expand(len(of.values), *of.values.shape[-2:], 3, 3)
    return expanded


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_equals_that_of_scipy(kind: Kind) -> None:
    fitted, new = Calibration.fit(kind, larger_where_bright(0, 5)), larger_where_bright(1, 1)
    residuals = new.values.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    moments = covariances(fitted, new).reshape(-1, 3, 3).numpy()
    logs = [multivariate_normal.logpdf(x, cov=moment) for x, moment in zip(residuals, moments, strict=True)]
    assert fitted.log_likelihood(new) == pytest.approx(np.mean(logs), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_few_images_are_shrunk_towards_the_overall_moment(kind: Kind) -> None:
    """With a larger prior, all cells are closer to the overall moment."""
    known = larger_on_the_left(0, 3)
    overall = Calibration.fit("none", known).whitening
    errors = [
        float((Calibration.fit(kind, known, prior_images=prior).whitening - overall).abs().max())
        for prior in (1.0, 100.0, 1e9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_is_calibrated_as_if_it_were_alone(kind: Kind) -> None:
    first, second = larger_where_bright(0, 6), larger_on_the_left(1, 6)
    both = first._replace(values=torch.cat([first.values, second.values], 1), parts=2)
    fitted = Calibration.fit(kind, both)
    alone = [Calibration.fit(kind, first._replace(values=part.values)) for part in (first, second)]
    for distance, part, of_part in zip(fitted.distances(both), (first, second), alone, strict=True):
        torch.testing.assert_close(
            distance, of_part.distances(first._replace(values=part.values))[0], rtol=1e-3, atol=1e-3
        )
    assert fitted.log_distance is not None
    assert len(fitted.log_distance.mean) == 2


def test_one_channel_is_enough() -> None:
    known = Residuals(3 * torch.randn(20, 1, SIZE, SIZE, generator=generator(0)))
    fitted = Calibration.fit("none", known)
    torch.testing.assert_close(fitted(known), known.values[:, 0] ** 2 / 9, rtol=0.1, atol=0)


def test_content_cells_are_bounded_by_quantiles() -> None:
    images = pictures(0, 50)
    cells = Content.fit(images)(images).flatten()
    assert 0 <= cells.min() <= cells.max() < EDGE_BINS * BRIGHTNESS_BINS
    edges, brightness = (
        torch.bincount(part) / len(cells) for part in (cells // BRIGHTNESS_BINS, cells % BRIGHTNESS_BINS)
    )
    torch.testing.assert_close(edges, torch.full((EDGE_BINS,), 1 / EDGE_BINS), atol=2e-3, rtol=0)
    torch.testing.assert_close(brightness, torch.full((BRIGHTNESS_BINS,), 1 / BRIGHTNESS_BINS), atol=2e-3, rtol=0)


def test_a_step_is_an_edge_and_a_constant_area_is_not() -> None:
    step = torch.zeros(1, 3, SIZE, SIZE)
    step[..., SIZE // 2 :] = 1
    edges, brightness = Content.fit(step).features(step)
    assert edges[0, :, 0].max() == 0
    assert edges[0, :, [7, 8]].min() > 0.5
    assert torch.equal(brightness, step[:, 0])
