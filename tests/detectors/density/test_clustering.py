import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from metalad.detectors.density.clustering import Mixture, fit_mixture, joint_log_density, k_means, log_likelihood
from metalad.detectors.density.nearest import QUERIES_AT_ONCE, nearest


def cloud(seed: int, points: int = 2000, channels: int = 4, clusters: int = 3) -> np.ndarray:
    """Gaussian clusters with different random covariances."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.standard_normal((points // clusters, channels)) @ rng.standard_normal((channels, channels))
        + 6 * rng.standard_normal(channels)
        for _ in range(clusters)
    ]
    return np.concatenate(parts).astype(np.float32)


def as_scikit_learn(mixture: Mixture) -> GaussianMixture:
    """The same mixture as an object of scikit-learn, whose Cholesky factor is the transposed whitening matrix."""
    reference = GaussianMixture(len(mixture.mean))
    reference.weights_, reference.means_ = mixture.log_weight.exp().numpy(), mixture.mean.numpy()
    reference.precisions_cholesky_ = mixture.whitening.mT.numpy()
    return reference


def test_the_cost_of_k_means_is_close_to_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    points = (rng.standard_normal((500, 3)) + 4 * rng.integers(0, 3, (500, 3))).astype(np.float32)
    clusters = k_means(torch.from_numpy(points), 10, 0)
    cost = float(torch.cdist(torch.from_numpy(points), clusters).amin(1).square().sum())
    assert cost < 1.02 * KMeans(10, n_init=10, random_state=0).fit(points).inertia_


def test_separated_clusters_are_found() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centers.repeat_interleave(5, 0)
    assert sorted(k_means(points, 3, 0).tolist()) == sorted(centers.tolist())


def test_each_point_goes_to_its_nearest_center() -> None:
    points = torch.from_numpy(cloud(4, QUERIES_AT_ONCE + 1000))
    centers = points[::50]
    assert torch.equal(nearest(points, centers), torch.cdist(points.double(), centers.double()).argmin(1))


def test_for_many_clusters_a_random_start_is_as_good_as_k_means_plus_plus() -> None:
    points = torch.from_numpy(cloud(3))
    costs = [
        float(
            torch.cdist(points, k_means(points, 200, 0, starts=1, rounds=10, plus_plus=plus_plus))
            .amin(1)
            .square()
            .sum()
        )
        for plus_plus in (True, False)
    ]
    assert costs[1] < 1.1 * costs[0]


def test_the_likelihood_equals_that_of_scikit_learn() -> None:
    known = cloud(2)
    mixture = fit_mixture(torch.from_numpy(known), 3, 0)
    reference = as_scikit_learn(mixture)
    points = np.concatenate([known[::7], 20 * known[::7]])
    likelihood = log_likelihood(torch.from_numpy(points), mixture)
    np.testing.assert_allclose(likelihood, reference.score_samples(points), rtol=1e-4, atol=1e-4)
    joint = joint_log_density(torch.from_numpy(points), mixture)
    np.testing.assert_allclose(joint.softmax(1), reference.predict_proba(points), atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_fitted_likelihood_is_close_to_that_of_scikit_learn(seed: int) -> None:
    points = cloud(seed)
    mixture = fit_mixture(torch.from_numpy(points), 3, seed, tolerance=1e-5)
    reference = GaussianMixture(3, reg_covar=1e-4, tol=1e-5, random_state=seed, n_init=3).fit(points)
    assert float(log_likelihood(torch.from_numpy(points), mixture).mean()) > reference.score(points) - 0.02


def test_one_component_is_the_sample_mean_and_covariance() -> None:
    points = cloud(5)
    mixture = fit_mixture(torch.from_numpy(points), 1, 0, ridge=0.0)
    covariance = torch.linalg.inv(mixture.whitening[0].T @ mixture.whitening[0])
    np.testing.assert_allclose(mixture.mean[0], points.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(covariance, np.cov(points.T, bias=True), rtol=1e-3, atol=1e-3)
    assert float(mixture.log_weight[0]) == 0


def test_identical_points_have_a_finite_likelihood() -> None:
    points = torch.full((50, 3), 0.5)
    mixture = fit_mixture(points, 4, 0)
    assert log_likelihood(points, mixture).isfinite().all()
    assert (log_likelihood(points + 1, mixture) < log_likelihood(points, mixture)).all()


def test_chunks_give_the_same_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.from_numpy(cloud(6))
    mixture = fit_mixture(points, 3, 0)
    whole = log_likelihood(points, mixture)
    monkeypatch.setattr("metalad.detectors.density.clustering.CHUNK", 100)
    torch.testing.assert_close(log_likelihood(points, mixture), whole)
