import numpy as np
import pytest
import torch

from metalad.detectors.density import gaussian
from metalad.detectors.density.gaussian import PRIOR_IMAGES, RIDGE, PositionalGaussian, variance_explained_by_position
from metalad.nn.smoothing import Smoothing
from tests.detectors.density.random_maps import noise


def test_the_distance_at_a_position_is_the_mahalanobis_distance() -> None:
    """Compared with a double-precision NumPy implementation that processes one position at a time."""
    images, channels, down, across = 12, 3, 5, 6
    known, new = noise(images, channels, down, across), noise(4, channels, down, across, seed=1)
    model = PositionalGaussian()
    model.fit(known)
    pool = Smoothing(down, across, gaussian.POOLING_SIGMA).double()
    mean = pool(known.double().mean(0))
    deviations = known.double() - mean
    products = torch.einsum("nchw,ndhw->cdhw", deviations, deviations) / images
    products = pool(products)
    overall = products.mean((2, 3), keepdim=True)
    moments = (images * products + PRIOR_IMAGES * overall) / (images + PRIOR_IMAGES)
    ridge = RIDGE * float(overall[:, :, 0, 0].diagonal().mean())
    expected = np.empty((4, down, across))
    for row in range(down):
        for column in range(across):
            inverse = np.linalg.inv(moments[:, :, row, column].numpy() + ridge * np.eye(channels))
            centered = (new[:, :, row, column].double() - mean[:, row, column]).numpy()
            expected[:, row, column] = np.sqrt(np.einsum("ni,ij,nj->n", centered, inverse, centered))
    np.testing.assert_allclose(model(new).numpy(), expected, rtol=1e-4)


def test_constant_features_give_finite_distances() -> None:
    model = PositionalGaussian()
    model.fit(torch.ones(3, 2, 4, 4))
    assert model(torch.ones(1, 2, 4, 4)).isfinite().all()


def test_explained_variance_of_identical_independent_and_mixed_images() -> None:
    same, independent = noise(5, 8, 8)[:1].expand(50, -1, -1, -1), noise(50, 5, 8, 8)
    assert float(variance_explained_by_position(same)) == pytest.approx(1)
    assert float(variance_explained_by_position(independent)) == pytest.approx(0, abs=0.05)
    assert float(variance_explained_by_position(same + independent)) == pytest.approx(0.5, abs=0.1)
    assert float(variance_explained_by_position(torch.ones(2, 3, 4, 4))) == 1
