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
"""Colours that err together."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coloured_noise(seed: int, images: int) -> Tensor:
    white = torch.randn(images, 3, SIZE, SIZE, generator=generator(seed))
    return torch.einsum("ij,njhw->nihw", MIXING, white)


def pictures(seed: int, images: int) -> Tensor:
    """Blobs, elsewhere in every image."""
    noise = np.random.default_rng(seed).random((images, 3, SIZE, SIZE))
    smooth = ndimage.gaussian_filter(noise, 1.5, axes=(2, 3), mode="wrap")
    return torch.from_numpy((smooth - smooth.min()) / (smooth.max() - smooth.min())).float()


def residuals(seed: int, images: int) -> Residuals:
    return Residuals(coloured_noise(seed, images), pictures(seed, images))


def aligned(seed: int, images: int) -> Residuals:
    """Residuals that are large on the left, whatever the picture."""
    return Residuals(coloured_noise(seed, images) * torch.linspace(2, 0.2, SIZE), pictures(seed, images))


def following(seed: int, images: int) -> Residuals:
    """Residuals that are large where the picture is bright, wherever that is."""
    expected = pictures(seed, images)
    return Residuals(coloured_noise(seed, images) * (0.1 + expected.mean(1, keepdim=True)) ** 2, expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "kind"), [(aligned, "position"), (following, "content"), (residuals, "none")])
def test_the_likeliest_kind_is_chosen(make: Callable[[int, int], Residuals], kind: Kind, seed: int) -> None:
    summary = choose(make(seed, 30), make(seed + 100, 6))
    assert summary.kind == kind, summary
    assert summary.log_likelihood[kind] == max(summary.log_likelihood.values())


def test_the_choice_does_not_depend_on_how_well_training_images_are_known() -> None:
    training, held_out = aligned(0, 30), aligned(1, 6)
    closer = training._replace(values=0.3 * training.values)
    assert choose(closer, held_out).log_likelihood == pytest.approx(choose(training, held_out).log_likelihood, abs=1e-3)


def test_without_a_reconstruction_content_is_no_choice() -> None:
    summary = choose(Residuals(coloured_noise(0, 8)), Residuals(coloured_noise(1, 4)))
    assert set(summary.log_likelihood) == {"none", "position"}


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_training_residuals_have_unit_moments(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    monkeypatch.setattr(calibration, "POOLING_SIGMA", 0.0)
    known = aligned(0, 40)
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
def test_colours_may_be_mixed_at_will(seed: int, kind: Kind) -> None:
    """Mahalanobis distances do not change under invertible linear maps."""
    known, new = residuals(seed, 6), residuals(seed + 1, 2)
    mixing = torch.linalg.qr(torch.randn(3, 3, generator=generator(seed)))[0] * torch.tensor([1.0, 2.0, 3.0])
    mixed = [part._replace(values=torch.einsum("ij,njhw->nihw", mixing, part.values)) for part in (known, new)]
    found, expected = Calibration.fit(kind, mixed[0])(mixed[1]), Calibration.fit(kind, known)(new)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)  # the floor is added before or after mixing


@pytest.mark.parametrize("kind", KINDS)
def test_no_variance_is_below_the_floor(kind: Kind) -> None:
    """A residual that was 0 on every good image is measured by the rounding of pixels."""
    nothing = Residuals(torch.zeros(4, 3, SIZE, SIZE), pictures(0, 4))
    fitted = Calibration.fit(kind, nothing)
    off = nothing._replace(values=torch.full((4, 3, SIZE, SIZE), 1 / 255))
    torch.testing.assert_close(fitted(nothing), torch.zeros(4, SIZE, SIZE))
    torch.testing.assert_close(fitted(off), torch.full((4, SIZE, SIZE), (1 / 255) ** 2 / MIN_VARIANCE))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_agree_wholly_have_units_all_the_same(kind: Kind) -> None:
    """Rounding makes their moments indefinite by more than the floor; a barely trained model has such channels."""
    shade = 10 * (torch.rand(6, 1, SIZE, SIZE, generator=generator(0)) + 1)
    known = Residuals(shade * torch.tensor([1.0, 0.7, 1.3])[:, None, None], pictures(0, 6))
    distances = Calibration.fit(kind, known)(known)
    assert distances.isfinite().all()
    assert float(distances.mean()) == pytest.approx(1 / 3, rel=0.01)  # one direction of three varies


def covariances(fitted: Calibration, of: Residuals) -> Tensor:
    """The moment by which each pixel is measured: images, height, width, channels, channels."""
    moments = torch.linalg.inv(fitted.whitening.double().mT @ fitted.whitening.double())
    if fitted.content is not None:
        assert of.reconstruction is not None
        by_pixel: Tensor = moments[fitted.content(of.reconstruction)]
        return by_pixel
    cells = moments.reshape(-1, *of.values.shape[-2:], 3, 3) if fitted.kind == "position" else moments[None, None]
    expanded: Tensor = cells.expand(len(of.values), *of.values.shape[-2:], 3, 3)
    return expanded


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_is_scipys(kind: Kind) -> None:
    fitted, new = Calibration.fit(kind, following(0, 5)), following(1, 1)
    residuals = new.values.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    moments = covariances(fitted, new).reshape(-1, 3, 3).numpy()
    logs = [multivariate_normal.logpdf(x, cov=moment) for x, moment in zip(residuals, moments, strict=True)]
    assert fitted.log_likelihood(new) == pytest.approx(np.mean(logs), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_few_images_are_drawn_to_the_whole(kind: Kind) -> None:
    """The more the prior weighs, the nearer are all cells to one."""
    known = aligned(0, 3)
    whole = Calibration.fit("none", known).whitening
    errors = [
        float((Calibration.fit(kind, known, prior_images=prior).whitening - whole).abs().max())
        for prior in (1.0, 100.0, 1e9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_one_channel_will_do() -> None:
    known = Residuals(3 * torch.randn(20, 1, SIZE, SIZE, generator=generator(0)))
    fitted = Calibration.fit("none", known)
    torch.testing.assert_close(fitted(known), known.values[:, 0] ** 2 / 9, rtol=0.1, atol=0)


def test_contents_are_cut_at_quantiles() -> None:
    expected = pictures(0, 50)
    cells = Content.fit(expected)(expected).flatten()
    assert 0 <= cells.min() <= cells.max() < EDGE_BINS * BRIGHTNESS_BINS
    edges, brightness = (
        torch.bincount(part) / len(cells) for part in (cells // BRIGHTNESS_BINS, cells % BRIGHTNESS_BINS)
    )
    torch.testing.assert_close(edges, torch.full((EDGE_BINS,), 1 / EDGE_BINS), atol=2e-3, rtol=0)
    torch.testing.assert_close(brightness, torch.full((BRIGHTNESS_BINS,), 1 / BRIGHTNESS_BINS), atol=2e-3, rtol=0)


def test_a_step_is_an_edge_and_a_plain_is_none() -> None:
    step = torch.zeros(1, 3, SIZE, SIZE)
    step[..., SIZE // 2 :] = 1
    edges, brightness = Content.fit(step).features(step)
    assert edges[0, :, 0].max() == 0
    assert edges[0, :, [7, 8]].min() > 0.5
    assert torch.equal(brightness, step[:, 0])
