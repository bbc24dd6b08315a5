import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import digamma
from scipy.stats import dirichlet as scipy_dirichlet

from metalad.methods.gt import (
    GeometricTransformations,
    GeometricTransformationsConfig,
    fit_dirichlet,
    source_indices,
    wide_residual_network,
)
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIDE = 16


def untrained(**changes: object) -> GeometricTransformations:
    values = {"image_size": (SIDE, SIDE), "widening": 1, "shift": 4, "transforms": "unshifted"} | changes
    torch.manual_seed(0)
    model = GeometricTransformations(GeometricTransformationsConfig(**values))  # type: ignore[arg-type]
    return model.eval()


def fitted() -> GeometricTransformations:
    """Scale the last layer's weights: predictions then differ between images, as after training."""
    model, images = untrained(), cookies(9, (SIDE, SIDE))
    model.network.get_submodule(str(len(model.network) - 1)).get_parameter("weight").data.mul_(30)
    model.conclude(images[:6], images[6:])
    return model


@pytest.mark.parametrize(("depth", "widening", "millions"), [(10, 4, 1.215), (16, 8, 10.99)])
def test_parameter_counts_match_the_paper(depth: int, widening: int, millions: float) -> None:
    network = wide_residual_network(depth, widening, 72)
    assert sum(tensor.numel() for tensor in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 72)
    convolutions = [layer for name, layer in network.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    main_path = [layer for layer in convolutions if layer.kernel_size == (3, 3)]
    assert len(main_path) + 3 == depth  # the paper also counts the three shortcut convolutions


def test_transformations_are_flip_then_shift_then_rotation() -> None:
    """The reference pads by reflection, crops and rotates."""
    model = untrained(transforms="all")
    assert model.classes == 72
    image = torch.rand(1, 3, SIDE, SIDE)
    expected = []
    for flip in (image, image.flip(3)):
        padded = F.pad(flip, (4, 4, 4, 4), mode="reflect")
        for across in (0, -4, 4):
            for down in (0, -4, 4):
                moved = padded[:, :, 4 - down : 4 - down + SIDE, 4 - across : 4 - across + SIDE]
                expected += [moved.rot90(quarter_turns, (2, 3)) for quarter_turns in range(4)]
    transformed = model.transformed(image.expand(72, -1, -1, -1), torch.arange(72))
    assert torch.equal(transformed, torch.cat(expected))


def test_transformations_are_distinct_and_the_first_is_the_identity() -> None:
    indices = source_indices(SIDE, 4)
    assert len({tuple(index.tolist()) for index in indices}) == 72
    assert indices[0].tolist() == list(range(SIDE * SIDE))
    assert len(source_indices(SIDE, 0)) == 8


def test_dirichlet_fit_recovers_known_parameters() -> None:
    rng = np.random.default_rng(0)
    known = np.array([[0.3, 1.0, 2.0, 8.0], [5.0, 5.0, 0.5, 0.7]])
    samples = np.stack([rng.dirichlet(parameters, 20_000) for parameters in known]).clip(1e-12)
    fitted_parameters = fit_dirichlet(torch.from_numpy(samples).log().float())
    np.testing.assert_allclose(fitted_parameters, known, rtol=0.05)


def test_dirichlet_fit_maximizes_the_likelihood() -> None:
    samples = np.random.default_rng(1).dirichlet(np.array([0.5, 3.0, 1.5]), 50)
    alpha = fit_dirichlet(torch.from_numpy(samples)[None].log())[0].double().numpy()
    gradient = digamma(alpha.sum()) - digamma(alpha) + np.log(samples).mean(0)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)

    def likelihood(parameters: np.ndarray) -> float:
        return float(sum(scipy_dirichlet.logpdf(sample / sample.sum(), parameters) for sample in samples))

    assert all(likelihood(alpha) > likelihood(alpha * factor) for factor in (0.9, 1.1))


def test_score_is_the_standardized_negative_log_likelihood() -> None:
    model, images = fitted(), to_batch(cookies(9, (SIDE, SIDE)))
    with torch.no_grad():
        indices = torch.arange(8)
        probabilities = [model.logits(image.expand(8, -1, -1, -1), indices).softmax(1) for image in images]
    nll = [-float(((model.alpha - 1) * probability.log()).sum(1).mean()) for probability in probabilities]
    assert float(model.score_mean) == pytest.approx(np.mean(nll[6:]), rel=1e-4)
    assert float(model.score_deviation) == pytest.approx(np.std(nll[6:], ddof=1), rel=1e-3)
    standard = (np.array(nll) - float(model.score_mean)) / float(model.score_deviation)
    scores = model.predict(images, model.residuals(images), "raw").score
    np.testing.assert_allclose(scores, np.log1p(np.exp(standard)), rtol=1e-3, atol=1e-3)
    assert scores.argsort().tolist() == np.argsort(nll).tolist()


def test_map_is_the_score_gradient_times_the_deviation_from_the_mean() -> None:
    """The reference is a finite difference in double precision."""
    model = fitted().double()
    image = to_batch(cookies(10, (SIDE, SIDE))[9:]).double()
    residual = model.residuals(image).values
    for channel, row, column in ((0, 3, 5), (2, 8, 8)):
        step = torch.zeros_like(image)
        step[0, channel, row, column] = 1e-5
        above, below = (model._score_and_gradient(image + sign * step)[0] for sign in (1, -1))
        deviation = image - model.typical
        expected = (above - below) / 2e-5 * deviation[0, channel, row, column] * SIDE**2 / model.score_deviation
        assert float(residual[0, channel, row, column]) == pytest.approx(float(expected), rel=1e-3, abs=1e-6)


def test_map_works_in_inference_mode() -> None:
    model, images = fitted(), to_batch(cookies(2, (SIDE, SIDE)))
    plain = model.residuals(images)
    with torch.inference_mode():
        inferred = model.residuals(images.clone())
    assert torch.equal(plain.values, inferred.values)
    assert not plain.values.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model, images = untrained(), to_batch(cookies(8, (SIDE, SIDE)))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = float(model.loss(images).detach())
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(images).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(model.eval().loss(images).detach()) < before / 2


@pytest.mark.parametrize(
    "changes", [{"image_size": (32, 48)}, {"depth": 12}, {"depth": 4}, {"widening": 0}, {"shift": 32}, {"shift": 0}]
)
def test_invalid_settings_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        GeometricTransformationsConfig(**changes)  # type: ignore[arg-type]


def test_single_image_raises() -> None:
    with pytest.raises(DataError, match="at least 2"):
        untrained().prepare("train", cookies(1, (SIDE, SIDE)), 0)
