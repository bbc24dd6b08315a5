import numpy as np
import pytest
import torch

from metalad.detectors.density import codebook, gaussian
from metalad.detectors.density.codebook import Codebook, nearest
from metalad.detectors.density.gaussian import PRIOR_IMAGES, RIDGE, PositionalGaussian, variance_explained_by_position
from metalad.detectors.density.log_distance import NormalizedLogDistance
from metalad.detectors.density.pca import IMAGES_PER_COMPONENT, PrincipalComponents
from metalad.nn.smoothing import Smoothing


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_of_fewer_points_than_words_each_is_a_word() -> None:
    points = noise(50, 6)
    book = Codebook(64)
    book.fit(points, 0)
    maps = noise(2, 6, 3, 4, seed=1)
    expected = torch.cdist(maps.permute(0, 2, 3, 1).reshape(-1, 6), points).amin(1).reshape(2, 3, 4)
    torch.testing.assert_close(book(maps), expected, rtol=1e-5, atol=1e-5)


def test_words_stand_for_their_points() -> None:
    """Of tight clusters the words are the centres, and a point far from all is as far as that."""
    centres = 10 * noise(8, 5)
    points = (centres + 0.01 * noise(200, 8, 5, seed=1)).reshape(-1, 5)
    book = Codebook(64)
    book.fit(points, 0)
    assert book.entries.shape == (64, 5)
    near = book(points.T.reshape(1, 5, 40, 40))
    assert near.max() < 0.1
    far = 100 + torch.zeros(1, 5, 1, 1)
    torch.testing.assert_close(
        book(far).flatten(), torch.cdist(far.reshape(1, 5), centres).amin(1), rtol=1e-3, atol=0.05
    )


def test_a_point_on_a_word_is_at_distance_zero() -> None:
    """Expanded squares would leave the rounding of large numbers."""
    book = Codebook(16)
    book.fit(1000 + noise(16, 4), 0)
    assert torch.count_nonzero(book(book.entries.T.reshape(1, 4, 4, 4))) == 0


def test_nearest_is_the_nearest_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "BANK_CHUNK", 7)
    queries, bank = noise(40, 3), noise(30, 3, seed=1)
    assert torch.equal(nearest(queries, bank), torch.cdist(queries, bank).argmin(1))


def test_the_distance_at_a_place_is_mahalanobis() -> None:
    """Against plain double-precision NumPy, place by place."""
    images, channels, down, across = 12, 3, 5, 6
    known, new = noise(images, channels, down, across), noise(4, channels, down, across, seed=1)
    law = PositionalGaussian()
    law.fit(known)
    pool = Smoothing(down, across, gaussian.POOLING_SIGMA).double()
    mean = pool(known.double().mean(0))
    apart = known.double() - mean
    products = torch.einsum("nchw,ndhw->cdhw", apart, apart) / images
    products = pool(products)
    overall = products.mean((2, 3), keepdim=True)
    moments = (images * products + PRIOR_IMAGES * overall) / (images + PRIOR_IMAGES)
    floor = RIDGE * float(overall[:, :, 0, 0].diagonal().mean())
    expected = np.empty((4, down, across))
    for row in range(down):
        for column in range(across):
            inverse = np.linalg.inv(moments[:, :, row, column].numpy() + floor * np.eye(channels))
            centred = (new[:, :, row, column].double() - mean[:, row, column]).numpy()
            expected[:, row, column] = np.sqrt(np.einsum("ni,ij,nj->n", centred, inverse, centred))
    np.testing.assert_allclose(law(new).numpy(), expected, rtol=1e-4)


def test_places_that_never_change_can_be_learnt() -> None:
    law = PositionalGaussian()
    law.fit(torch.ones(3, 2, 4, 4))
    assert law(torch.ones(1, 2, 4, 4)).isfinite().all()


def test_one_good_place_in_a_hundred_reaches_one() -> None:
    distances = [noise(20, 30, 30).exp(), 5 * noise(20, 30, 30, seed=1).abs()]
    for values in distances:
        units = NormalizedLogDistance(1)
        units.fit([values])
        said = units([values])
        assert said.mean().abs() < 1e-4
        assert float((said > 1).float().mean()) == pytest.approx(0.01, abs=2e-4)


def test_scale_means_nothing_and_an_unsteady_distance_says_little() -> None:
    steady, unsteady = (0.1 * noise(10, 20, 20)).exp(), (2 * noise(10, 20, 20, seed=1)).exp()
    units, scaled = NormalizedLogDistance(2), NormalizedLogDistance(2)
    units.fit([steady, unsteady])
    scaled.fit([7 * steady, 0.01 * unsteady])
    twice = torch.full((1, 1, 1), 2.0)
    torch.testing.assert_close(scaled([7 * twice, 0.01 * twice]), units([twice, twice]))
    mean = torch.ones(1, 1, 1)
    assert units([twice, mean]) - units([mean, mean]) > 10 * (units([mean, twice]) - units([mean, mean]))


def test_each_distance_has_the_say_it_is_given() -> None:
    distances = [(0.1 * noise(10, 20, 20)).exp(), noise(10, 20, 20, seed=1).exp()]
    units = NormalizedLogDistance(2)
    units.fit(distances)
    each = [units(distances, torch.eye(2)[number]) for number in range(2)]
    torch.testing.assert_close(units(distances), (each[0] + each[1]) / 2)
    torch.testing.assert_close(units(distances, torch.tensor([3.0, 1.0])), (3 * each[0] + each[1]) / 4)


def test_place_explains_what_does_not_change_from_image_to_image() -> None:
    here, anywhere = noise(5, 8, 8)[:1].expand(50, -1, -1, -1), noise(50, 5, 8, 8)
    assert float(variance_explained_by_position(here)) == pytest.approx(1)
    assert float(variance_explained_by_position(anywhere)) == pytest.approx(0, abs=0.05)
    assert float(variance_explained_by_position(here + anywhere)) == pytest.approx(0.5, abs=0.1)
    assert float(variance_explained_by_position(torch.ones(2, 3, 4, 4))) == 1


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    images = torch.rand(24, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    components = PrincipalComponents()
    components.fit(images)
    flat = images.flatten(1).double().numpy()
    _, _, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    kept = directions[: 24 // IMAGES_PER_COMPONENT]
    new = torch.rand(2, 3, 5, 4)
    away = new.flatten(1).double().numpy() - flat.mean(0)
    expected = flat.mean(0) + away @ kept.T @ kept
    np.testing.assert_allclose(components(new).flatten(1).numpy(), expected, atol=1e-5)


def test_of_few_or_equal_images_there_is_only_the_mean() -> None:
    components = PrincipalComponents()
    images = torch.rand(2, 3, 4, 4)
    components.fit(images)
    torch.testing.assert_close(components(torch.rand(5, 3, 4, 4)), images.mean(0).expand(5, -1, -1, -1))
    components.fit(images[:1].repeat(8, 1, 1, 1))
    assert components(images).isfinite().all()
