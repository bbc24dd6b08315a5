import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from metalad.detectors.density import clustering
from metalad.detectors.density.clustering import Mixture, fit_mixture, joint_log_density, k_means, log_likelihood


def cloud(seed: int, points: int = 2000, channels: int = 4, clusters: int = 3) -> np.ndarray:
    """Normal clusters, each stretched and turned in its own way."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.standard_normal((points // clusters, channels)) @ rng.standard_normal((channels, channels))
        + 6 * rng.standard_normal(channels)
        for _ in range(clusters)
    ]
    return np.concatenate(parts).astype(np.float32)


def scikit_learns(mixture: Mixture) -> GaussianMixture:
    """The same law, as scikit-learn holds it: its factor is the whitening matrix, transposed."""
    law = GaussianMixture(len(mixture.mean))
    law.weights_, law.means_ = mixture.log_weight.exp().numpy(), mixture.mean.numpy()
    law.precisions_cholesky_ = mixture.whitening.mT.numpy()
    return law


def test_the_words_are_as_good_as_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    points = (rng.standard_normal((500, 3)) + 4 * rng.integers(0, 3, (500, 3))).astype(np.float32)
    clusters = k_means(torch.from_numpy(points), 10, 0)
    cost = float(torch.cdist(torch.from_numpy(points), clusters).amin(1).square().sum())
    assert cost < 1.02 * KMeans(10, n_init=10, random_state=0).fit(points).inertia_


def test_separate_clusters_are_found() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat_interleave(5, 0)
    assert sorted(k_means(points, 3, 0).tolist()) == sorted(centres.tolist())


def test_each_point_goes_to_its_nearest_centre() -> None:
    points = torch.from_numpy(cloud(4, clustering.POINTS_AT_ONCE + 1000))
    centres = points[::50]
    assert torch.equal(
        clustering._nearest_centres(points, centres), torch.cdist(points.double(), centres.double()).argmin(1)
    )


def test_a_sample_is_as_good_a_start_for_many_words() -> None:
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


def test_the_likelihood_is_scikit_learns() -> None:
    points = cloud(2)
    mixture = fit_mixture(torch.from_numpy(points), 3, 0)
    law = scikit_learns(mixture)
    elsewhere = np.concatenate([points[::7], 20 * points[::7]])
    found = log_likelihood(torch.from_numpy(elsewhere), mixture)
    np.testing.assert_allclose(found, law.score_samples(elsewhere), rtol=1e-4, atol=1e-4)
    joint = joint_log_density(torch.from_numpy(elsewhere), mixture)
    np.testing.assert_allclose(joint.softmax(1), law.predict_proba(elsewhere), atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_mixture_is_as_likely_as_scikit_learns(seed: int) -> None:
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


def test_points_all_the_same_have_a_likelihood() -> None:
    points = torch.full((50, 3), 0.5)
    mixture = fit_mixture(points, 4, 0)
    assert log_likelihood(points, mixture).isfinite().all()
    assert (log_likelihood(points + 1, mixture) < log_likelihood(points, mixture)).all()


def test_points_are_looked_at_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.from_numpy(cloud(6))
    mixture = fit_mixture(points, 3, 0)
    whole = log_likelihood(points, mixture)
    monkeypatch.setattr("metalad.detectors.density.clustering.CHUNK", 100)
    torch.testing.assert_close(log_likelihood(points, mixture), whole)
