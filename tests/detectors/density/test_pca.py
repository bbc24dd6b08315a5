import numpy as np
import pytest
import torch

from metalad.detectors.density.pca import IMAGES_PER_COMPONENT, PrincipalComponents, leading_eigenvectors
from tests.detectors.density.random_maps import noise


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    images = torch.rand(24, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    components = PrincipalComponents()
    components.fit(images)
    flat = images.flatten(1).double().numpy()
    _, _, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    leading = directions[: 24 // IMAGES_PER_COMPONENT]
    new = torch.rand(2, 3, 5, 4)
    deviations = new.flatten(1).double().numpy() - flat.mean(0)
    expected = flat.mean(0) + deviations @ leading.T @ leading
    np.testing.assert_allclose(components(new).flatten(1).numpy(), expected, atol=1e-5)


def test_for_few_images_the_result_is_the_mean_and_for_equal_images_it_is_finite() -> None:
    components = PrincipalComponents()
    images = torch.rand(2, 3, 4, 4)
    components.fit(images)
    torch.testing.assert_close(components(torch.rand(5, 3, 4, 4)), images.mean(0).expand(5, -1, -1, -1))
    components.fit(images[:1].repeat(8, 1, 1, 1))
    assert components(images).isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_leading_eigenvectors_are_the_last_of_all(count: int) -> None:
    root = noise(5, 5)
    matrix = root @ root.T
    matrix = (matrix + matrix.T) / 2  # rounding of the product is not symmetric on every processor
    values, vectors = leading_eigenvectors(matrix, count)
    assert vectors.shape == (5, count)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix.double().numpy())[5 - count :])
    torch.testing.assert_close(matrix.double() @ vectors, vectors * values)
