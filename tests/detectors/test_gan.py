import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalad.detectors.gan import (
    Stage,
    adversarial_loss,
    gradient_penalty,
    initialize_weights,
    parameters_of,
    signed,
    strided_convolutions,
    transposed_convolutions,
    unsigned,
)
from metalad.training.loop import Objective


def critic_of(norm: nn.Module) -> nn.Sequential:
    """A smooth critic in double precision, with a normalization layer."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), norm, nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 1))
    return nn.Sequential(*layers).double()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def penalty_and_gradients(critic: nn.Module, batch: Tensor) -> tuple[float, list[Tensor]]:
    """Use equal real and fake images, so that the interpolated points are known."""
    critic.zero_grad()
    value = gradient_penalty(critic, batch, batch)
    gradients = torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)
    return value.item(), [torch.zeros(()) if gradient is None else gradient for gradient in gradients]


@pytest.mark.parametrize("norm", [nn.Identity(), nn.GroupNorm(1, 4)], ids=["none", "layer"])
def test_the_penalty_of_a_batch_is_the_mean_over_its_images(norm: nn.Module) -> None:
    critic, batch = critic_of(norm), images(4)
    value, gradients = penalty_and_gradients(critic, batch)
    single = [penalty_and_gradients(critic, batch[index : index + 1]) for index in range(4)]
    assert value == pytest.approx(sum(part for part, _ in single) / 4, rel=1e-9)
    for index, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, sum(part[index] for _, part in single) / 4, rtol=1e-7, atol=1e-10)


def test_the_penalty_is_not_the_mean_with_batch_norm() -> None:
    """The previous test can fail: with batch norm the images of a batch are not independent."""
    critic, batch = critic_of(nn.BatchNorm2d(4)), images(4)
    single = [penalty_and_gradients(critic, batch[index : index + 1])[0] for index in range(4)]
    assert penalty_and_gradients(critic, batch)[0] != pytest.approx(sum(single) / 4, rel=1e-3)


def test_the_penalty_of_a_linear_critic_equals_the_closed_form() -> None:
    linear = nn.Linear(108, 1).double()
    critic, weights = nn.Sequential(nn.Flatten(), linear), linear.weight
    value = gradient_penalty(critic, images(3, 1), images(3, 2))
    torch.testing.assert_close(value, (weights.norm() - 1) ** 2)
    (gradient,) = torch.autograd.grad(value, weights)
    torch.testing.assert_close(gradient, 2 * (weights.norm() - 1) * weights / weights.norm())


def test_the_penalty_and_its_gradient_equal_finite_differences() -> None:
    """Both are computed from small changes of the pixels and of a weight."""
    critic, batch = critic_of(nn.GroupNorm(1, 4)), images(2)

    def finite_difference_penalty() -> float:
        norms = []
        with torch.no_grad():
            for image in batch:
                steps = 1e-4 * torch.eye(image.numel(), dtype=torch.double).reshape(-1, *image.shape)
                norms.append(((critic(image + steps) - critic(image - steps)) / 2e-4).norm())
        return float(sum((norm - 1) ** 2 for norm in norms) / 2)

    value, gradients = penalty_and_gradients(critic, batch)
    assert value == pytest.approx(finite_difference_penalty(), rel=1e-5)
    weight = next(critic.parameters()).detach()
    values = []
    for step in (1e-3, -2e-3):
        weight[1, 2, 0, 1] += step
        values.append(finite_difference_penalty())
    assert float(gradients[0][1, 2, 0, 1]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-3)


def test_the_penalty_is_computed_at_points_between_real_and_fake() -> None:
    inputs: list[Tensor] = []

    def critic(batch: Tensor) -> Tensor:
        inputs.append(batch.detach())
        return batch.square().flatten(1).sum(1)

    torch.manual_seed(0)
    gradient_penalty(critic, torch.zeros(50, 3, 2, 2), torch.ones(50, 3, 2, 2))
    (points,) = inputs
    fractions = points.flatten(1)
    assert (fractions == fractions[:, :1]).all()
    assert 0 <= fractions.min() < 0.1 < 0.9 < fractions.max() <= 1


def test_autocast_does_not_change_the_penalty() -> None:
    critic, batch = critic_of(nn.GroupNorm(1, 4)).float(), images(4).float()
    expected = gradient_penalty(critic, batch, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_penalty(critic, batch, batch), expected)


def test_the_adversarial_loss_is_the_binary_cross_entropy() -> None:
    logits = torch.tensor([[-2.0], [0.5]])
    probability = torch.sigmoid(logits)
    torch.testing.assert_close(adversarial_loss(logits, real=True), -probability.log().mean())
    torch.testing.assert_close(adversarial_loss(logits, real=False), -(1 - probability).log().mean())
    assert float(adversarial_loss(torch.zeros(3, dtype=torch.bfloat16), real=True)) == pytest.approx(math.log(2))


def test_signed_and_unsigned_are_inverse() -> None:
    values = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(unsigned(signed(values)), values)
    ends = signed(torch.tensor([0.0, 1.0]).reshape(1, 1, 2).expand(3, 1, 2))
    assert ends[0, 0].tolist() == [-1, 1]


@pytest.mark.parametrize(("kernel", "padding", "sides"), [(4, 1, (4, 8, 16)), (5, 0, (1, 5, 13))])
def test_convolution_stacks_halve_and_double_the_size(kernel: int, padding: int, sides: tuple[int, ...]) -> None:
    small, _, large = sides
    down, up = (
        strided_convolutions((3, 4, 5), kernel=kernel, padding=padding),
        transposed_convolutions((5, 4, 3), kernel=kernel, padding=padding),
    )
    assert down(torch.rand(2, 3, large, large)).shape == (2, 5, small, small)
    assert up(torch.rand(2, 5, small, small)).shape == (2, 3, large, large)
    assert [type(layer) for layer in down] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]


def test_initial_weights_are_those_of_dcgan() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(64)
    layers = (nn.Conv2d(64, 64, 4), nn.Linear(300, 300), nn.ConvTranspose2d(64, 64, 4))
    initialize_weights(nn.Sequential(*layers, norm))
    for layer in layers:
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert layer.bias is not None
        assert torch.count_nonzero(layer.bias.detach()) == 0
    assert float(norm.weight.detach().mean()) == pytest.approx(1, abs=0.01)


def test_a_stage_trains_only_its_networks() -> None:
    trained, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    both = nn.ModuleList((trained, other))
    objective = Objective(lambda batch: F.mse_loss(trained(batch), batch), parameters_of(trained))
    stage = Stage((trained,), (objective,), lambda batch: batch.sum())
    both.eval()
    stage.train()
    assert (trained.training, other.training) == (True, False)
    assert [id(part) for part in objective.parameters] == [id(part) for part in trained.parameters()]
    assert stage.objectives() == (objective,)
    assert float(stage.loss(torch.ones(1, 3, 1, 1))) == 3
    assert copy.deepcopy(stage).networks[0] is not trained
