import pytest
import torch
from torch import Tensor

from metalad.nn.whitening import CHUNK, whitening


def covariances(count: int, channels: int, seed: int = 0) -> Tensor:
    vectors = torch.randn(count, channels, 2 * channels, generator=torch.Generator().manual_seed(seed))
    return vectors @ vectors.mT / (2 * channels)


@pytest.mark.parametrize("count", [0, 1, CHUNK // 25, 2 * (CHUNK // 25) + 3])
def test_whitening_is_the_inverse_cholesky_factor(count: int) -> None:
    covariance = covariances(count, 5)
    matrix = whitening(covariance, 0.01)
    regularized = covariance.double() + 0.01 * torch.eye(5, dtype=torch.double)
    expected = torch.linalg.inv(torch.linalg.cholesky(regularized)).float()
    torch.testing.assert_close(matrix, expected)
    torch.testing.assert_close(matrix.mT @ matrix, torch.linalg.inv(regularized).float(), rtol=1e-4, atol=1e-4)


def test_result_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalad.nn.whitening.CHUNK", 64 * 16)
    covariance = covariances(64 + 1, 4).double()
    single = [whitening(matrix[None], 0.1)[0] for matrix in covariance]
    assert torch.equal(whitening(covariance, 0.1), torch.stack(single))


def test_eigenvalues_of_indefinite_matrices_are_clamped() -> None:
    covariance = covariances(3, 3)
    covariance[1] = torch.diag(torch.tensor([4.0, 1.0, -2.0]))
    matrix = whitening(covariance, 0.25)
    torch.testing.assert_close(matrix[1], torch.diag(torch.tensor([4.25, 1.25, 0.25]) ** -0.5))
    assert torch.equal(matrix[::2], whitening(covariance[::2], 0.25))


def test_non_finite_covariance_raises() -> None:
    with pytest.raises(RuntimeError, match="linalg"):
        whitening(torch.full((1, 3, 3), torch.nan), 0.1)
