import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalad.detectors.gan import (
    Stage,
    adversarial_loss,
    doubling,
    gradient_penalty,
    halving,
    parameters_of,
    signed,
    start_small,
    unsigned,
)
from metalad.training.loop import Objective


def critic_of(norm: nn.Module) -> nn.Sequential:
    """A smooth critic, in double precision, with a norm between its layers."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), norm, nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 1))
    return nn.Sequential(*layers).double()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def penalty_and_slopes(critic: nn.Module, batch: Tensor) -> tuple[float, list[Tensor]]:
    """Of real and fake images that are the same, so that the point between them is known."""
    critic.zero_grad()
    value = gradient_penalty(critic, batch, batch)
    slopes = torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)
    return value.item(), [torch.zeros(()) if slope is None else slope for slope in slopes]


@pytest.mark.parametrize("norm", [nn.Identity(), nn.GroupNorm(1, 4)], ids=["none", "layer"])
def test_the_penalty_of_a_batch_is_the_mean_of_its_images(norm: nn.Module) -> None:
    critic, batch = critic_of(norm), images(4)
    value, slopes = penalty_and_slopes(critic, batch)
    alone = [penalty_and_slopes(critic, batch[index : index + 1]) for index in range(4)]
    assert value == pytest.approx(sum(part for part, _ in alone) / 4, rel=1e-9)
    for index, slope in enumerate(slopes):
        torch.testing.assert_close(slope, sum(part[index] for _, part in alone) / 4, rtol=1e-7, atol=1e-10)


def test_batch_norm_would_break_it() -> None:
    """The test above can fail: with batch norm the images of a batch are not apart."""
    critic, batch = critic_of(nn.BatchNorm2d(4)), images(4)
    alone = [penalty_and_slopes(critic, batch[index : index + 1])[0] for index in range(4)]
    assert penalty_and_slopes(critic, batch)[0] != pytest.approx(sum(alone) / 4, rel=1e-3)


def test_the_penalty_of_a_linear_critic_is_known() -> None:
    linear = nn.Linear(108, 1).double()
    critic, weights = nn.Sequential(nn.Flatten(), linear), linear.weight
    value = gradient_penalty(critic, images(3, 1), images(3, 2))
    torch.testing.assert_close(value, (weights.norm() - 1) ** 2)
    (slope,) = torch.autograd.grad(value, weights)
    torch.testing.assert_close(slope, 2 * (weights.norm() - 1) * weights / weights.norm())


def test_the_penalty_is_that_of_finite_differences() -> None:
    """Value and gradient, with no derivative taken but by small steps of pixels and of a weight."""
    critic, batch = critic_of(nn.GroupNorm(1, 4)), images(2)

    def plainly() -> float:
        norms = []
        with torch.no_grad():
            for image in batch:
                steps = 1e-4 * torch.eye(image.numel(), dtype=torch.double).reshape(-1, *image.shape)
                norms.append(((critic(image + steps) - critic(image - steps)) / 2e-4).norm())
        return float(sum((norm - 1) ** 2 for norm in norms) / 2)

    value, slopes = penalty_and_slopes(critic, batch)
    assert value == pytest.approx(plainly(), rel=1e-5)
    weight = next(critic.parameters()).detach()
    values = []
    for step in (1e-3, -2e-3):
        weight[1, 2, 0, 1] += step
        values.append(plainly())
    assert float(slopes[0][1, 2, 0, 1]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-3)


def test_the_penalty_lies_between_real_and_fake() -> None:
    seen: list[Tensor] = []

    def critic(batch: Tensor) -> Tensor:
        seen.append(batch.detach())
        return batch.square().flatten(1).sum(1)

    torch.manual_seed(0)
    gradient_penalty(critic, torch.zeros(50, 3, 2, 2), torch.ones(50, 3, 2, 2))
    (points,) = seen
    shares = points.flatten(1)
    assert (shares == shares[:, :1]).all()
    assert 0 <= shares.min() < 0.1 < 0.9 < shares.max() <= 1


def test_under_autocast_the_penalty_keeps_its_digits() -> None:
    critic, batch = critic_of(nn.GroupNorm(1, 4)).float(), images(4).float()
    plain = gradient_penalty(critic, batch, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_penalty(critic, batch, batch), plain)


def test_the_loss_is_the_cross_entropy() -> None:
    logits = torch.tensor([[-2.0], [0.5]])
    sure = torch.sigmoid(logits)
    torch.testing.assert_close(adversarial_loss(logits, real=True), -sure.log().mean())
    torch.testing.assert_close(adversarial_loss(logits, real=False), -(1 - sure).log().mean())
    assert float(adversarial_loss(torch.zeros(3, dtype=torch.bfloat16), real=True)) == pytest.approx(math.log(2))


def test_ranges_come_back() -> None:
    values = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(unsigned(signed(values)), values)
    ends = signed(torch.tensor([0.0, 1.0]).reshape(1, 1, 2).expand(3, 1, 2))
    assert ends[0, 0].tolist() == [-1, 1]


@pytest.mark.parametrize(("kernel", "padding", "sides"), [(4, 1, (4, 8, 16)), (5, 0, (1, 5, 13))])
def test_stacks_halve_and_double(kernel: int, padding: int, sides: tuple[int, ...]) -> None:
    small, _, large = sides
    down, up = halving((3, 4, 5), kernel=kernel, padding=padding), doubling((5, 4, 3), kernel=kernel, padding=padding)
    assert down(torch.rand(2, 3, large, large)).shape == (2, 5, small, small)
    assert up(torch.rand(2, 5, small, small)).shape == (2, 3, large, large)
    assert [type(layer) for layer in down] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]


def test_small_starts_are_dcgans() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(64)
    layers = (nn.Conv2d(64, 64, 4), nn.Linear(300, 300), nn.ConvTranspose2d(64, 64, 4))
    start_small(nn.Sequential(*layers, norm))
    for layer in layers:
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert layer.bias is not None
        assert torch.count_nonzero(layer.bias.detach()) == 0
    assert float(norm.weight.detach().mean()) == pytest.approx(1, abs=0.01)


def test_a_stage_trains_its_networks_alone() -> None:
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    both = nn.ModuleList((one, other))
    objective = Objective(lambda batch: F.mse_loss(one(batch), batch), parameters_of(one))
    stage = Stage((one,), (objective,), lambda batch: batch.sum())
    both.eval()
    stage.train()
    assert (one.training, other.training) == (True, False)
    assert [id(part) for part in objective.parameters] == [id(part) for part in one.parameters()]
    assert stage.objectives() == (objective,)
    assert float(stage.loss(torch.ones(1, 3, 1, 1))) == 3
    assert copy.deepcopy(stage).networks[0] is not one
