import math
from pathlib import Path

import numpy as np
import pytest
import torch

from metalad.methods.lsa import Estimator, Lsa, LsaConfig
from metalad.nn.pixels import to_batch
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.train import train
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

SMALL = LsaConfig(image_size=(32, 40), smoothing_sigma=1.0, code=6, bins=10, width=4, estimator_width=5)


def small() -> Lsa:
    torch.manual_seed(0)
    return Lsa(SMALL).eval()


def test_estimator_uses_only_preceding_elements() -> None:
    torch.manual_seed(0)
    estimator, code = Estimator(7, 4, 10), torch.rand(2, 7, requires_grad=True)
    logits = estimator(code)
    for index in range(7):
        weights = torch.randn(2, 10)
        (gradient,) = torch.autograd.grad((logits[:, index] * weights).sum(), code, retain_graph=True)
        assert torch.count_nonzero(gradient[:, index:]) == 0
        assert (gradient[:, :index] != 0).all()


def test_trained_estimator_uses_only_preceding_elements() -> None:
    """Masked weights may change in training, but the mask is applied in every forward pass."""
    torch.manual_seed(0)
    estimator = Estimator(5, 4, 10)
    optimizer = torch.optim.Adam(estimator.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        estimator(torch.rand(4, 5)).square().sum().backward()
        optimizer.step()
    one = torch.rand(1, 5)
    for index in range(5):
        other = one.clone()
        other[:, index:] = torch.rand(5 - index)
        torch.testing.assert_close(estimator(one)[:, : index + 1], estimator(other)[:, : index + 1], rtol=0, atol=0)
        assert index == 4 or not torch.equal(estimator(one)[:, index + 1], estimator(other)[:, index + 1])


def test_negative_log_likelihood_is_the_sum_over_the_code() -> None:
    model = small()
    code = torch.rand(3, 6)
    code[0, :2] = torch.tensor([0.0, 1.0])  # the limits belong to the first and the last bin
    with torch.no_grad():
        logits, values = model.estimator(code).double().numpy(), model.negative_log_likelihoods(code)
    for image in range(3):
        expected = 0.0
        for index in range(6):
            bin_index = min(math.floor(10 * float(code[image, index])), 9)
            exponentials = np.exp(logits[image, index])
            expected -= math.log(exponentials[bin_index] / exponentials.sum())
        assert float(values[image]) == pytest.approx(expected, rel=1e-5)


def test_likelihood_has_gradients_for_all_but_the_last_element() -> None:
    model = small()
    code = model.encode(to_batch(cookies(2, (32, 40))))
    (gradient,) = torch.autograd.grad(model.negative_log_likelihoods(code).sum(), code)
    assert (gradient[:, :-1] != 0).all()
    assert torch.count_nonzero(gradient[:, -1]) == 0  # no element is predicted from the last one


def test_loss_and_map() -> None:
    model, images = small(), to_batch(cookies(2, (32, 40)))
    with torch.no_grad():
        error = (model.reconstruct(images) - images).square()
        negative_log_likelihood = model.negative_log_likelihoods(model.encode(images))
        torch.testing.assert_close(model.loss(images), (error.sum((1, 2, 3)) + negative_log_likelihood).mean())
        torch.testing.assert_close(model.raw_map(model.residuals(images)), error.sum(1))


def test_score_ranges_are_those_of_held_out_images() -> None:
    model, pixels = small(), cookies(7, (32, 40))
    with torch.no_grad():
        model.to_code.weight *= 100  # before training, all images have nearly the same code
    model.conclude(pixels[:2], pixels[2:])
    with torch.no_grad():
        _, negative_log_likelihood, error = model._scores(to_batch(pixels[2:]))
        score = model.residuals(to_batch(pixels[2:])).score
    assert score is not None
    scaled = sum((part - part.min()) / (part.max() - part.min()) for part in (negative_log_likelihood, error))
    torch.testing.assert_close(score, torch.log1p(torch.exp(torch.as_tensor(scaled))), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_range_of_few_or_equal_images_is_positive(count: int) -> None:
    model, pixels = small(), np.repeat(cookies(1, (32, 40)), 2, axis=0)
    model.conclude(pixels[:1], pixels[:count])
    assert (model.ranges > 0).all()
    with torch.no_grad():
        score = model.residuals(to_batch(cookies(3, (32, 40)))).score
    assert score is not None
    assert score.isfinite().all()


def test_training_step_works_with_a_single_image() -> None:
    model = small().train()
    assert model.loss(to_batch(cookies(1, (32, 40)))).isfinite()


def test_training_and_evaluation_on_head_ct(shared_data: Path, tmp_path: Path) -> None:
    """Gray images of many sizes with a label list and without masks."""
    config = LsaConfig(image_size=(16, 16), code=4, bins=10, width=2, estimator_width=2)
    model = train(shared_data / "headct", tmp_path / "run", method=config, epochs=1, device="cpu")
    report = evaluate(model, shared_data / "headct", device="cpu")
    assert len(report.images) == 120
    assert report.chosen.metrics_model.pixel_auroc is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (60, 64)}, "multiples of 8"),
        ({"bins": 1}, "bins at least 2"),
        ({"likelihood_weight": -1.0}, "likelihood_weight is -1.0"),
    ],
)
def test_invalid_settings_raise(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LsaConfig(**changes)  # type: ignore[arg-type]
