import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from metalad.detectors.density.subspace import Subspace


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    """Return correlated vectors of 7 channels, far from the origin."""
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))[0]
    scaled = np.random.default_rng(seed).normal(size=(count, 7)) * [5, 3, 2, 1, 0.5, 0.2, 0.1]
    return torch.from_numpy(scaled @ directions + 100).float()


@pytest.mark.parametrize("variance", [0.5, 0.8, 0.95, 0.99, 0.9999])
def test_residual_is_that_of_scikit_learn(variance: float) -> None:
    """With a fraction, scikit-learn's PCA also keeps the fewest components that explain at least this fraction."""
    fitted_on, others = vectors(300), vectors(50, 1)
    subspace = Subspace()
    subspace.fit(torch.split(fitted_on, 128), variance)
    pca = PCA(variance, svd_solver="full").fit(fitted_on.double().numpy())
    assert subspace.dimensions == pca.n_components_
    values = others.double().numpy()
    expected = np.linalg.norm(values - pca.inverse_transform(pca.transform(values)), axis=1)
    np.testing.assert_allclose(subspace(others).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_batches_do_not_matter() -> None:
    one, other = Subspace(), Subspace()
    one.fit([vectors(100)], 0.9)
    other.fit(torch.split(vectors(100), 7), 0.9)
    torch.testing.assert_close(one(vectors(20, 1)), other(vectors(20, 1)), rtol=1e-4, atol=1e-4)


def test_vectors_in_the_subspace_have_no_residual() -> None:
    plane = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 5) + 3
    subspace = Subspace()
    subspace.fit([plane], 0.99)
    assert subspace.dimensions == 2
    assert subspace(plane).max() < 1e-5
    moved = plane.clone()
    moved[:, 4] += 2.5
    torch.testing.assert_close(subspace(moved), torch.full((200,), 2.5), rtol=1e-5, atol=1e-5)


def test_residual_of_equal_vectors_is_the_distance_from_them() -> None:
    subspace = Subspace()
    subspace.fit([torch.full((10, 3), 2.0)], 0.99)
    assert subspace.dimensions == 0
    torch.testing.assert_close(subspace(torch.tensor([[2.0, 5.0, 6.0]])), torch.tensor([5.0]))
