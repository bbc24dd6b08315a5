import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalad.nn.capsules import Capsules, longest, route, routing_weights, squash


def votes(outputs: int, inputs: int = 6, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(3, outputs, inputs, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6))
def test_squash_preserves_direction_and_maps_length_below_1(values: list[float]) -> None:
    vector = torch.tensor(values, dtype=torch.double)
    squashed = squash(vector)
    length, before = float(squashed.norm()), float(vector.norm())
    assert 0 <= length < 1
    assert length == pytest.approx(before**2 / (1 + before**2), rel=1e-9)
    torch.testing.assert_close(squashed * before, vector * length)


def test_squash_of_0_has_finite_gradient() -> None:
    vector = torch.zeros(2, 4, requires_grad=True)
    squashed = squash(vector)
    squashed.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.count_nonzero(squashed) == 0
    assert vector.grad is not None
    assert vector.grad.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 5), st.integers(0, 1000))
def test_routing_weights_sum_to_1_over_outputs(outputs: int, inputs: int, iterations: int, seed: int) -> None:
    weights = routing_weights(10 * votes(outputs, inputs, seed=seed), iterations)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3, inputs))


def test_initial_routing_weights_are_uniform() -> None:
    assert torch.equal(routing_weights(votes(4), iterations=1), torch.full((3, 4, 6), 0.25))


def test_routing_equals_procedure_1() -> None:
    """Reference: a loop over capsules as printed in Sabour et al. 2017."""
    all_votes = votes(2)
    for image, routed in zip(all_votes.double().numpy(), route(all_votes), strict=True):
        logits = np.zeros((2, 6))
        for _ in range(3):
            weights = np.exp(logits) / np.exp(logits).sum(0)
            outputs = np.empty((2, 5))
            for output in range(2):
                total = sum(weights[output, i] * image[output, i] for i in range(6))
                outputs[output] = total * (total @ total) / (1 + total @ total) / np.sqrt(total @ total)
            for output in range(2):
                for i in range(6):
                    logits[output, i] += outputs[output] @ image[output, i]
        np.testing.assert_allclose(routed.numpy(), outputs, rtol=1e-5, atol=1e-6)


def test_routing_prefers_outputs_with_agreeing_votes() -> None:
    """All votes for the first output are equal; those for the second cancel out."""
    equal, opposed = torch.ones(1, 1, 6, 5), torch.tensor([1.0, -1.0] * 3)[None, None, :, None].expand(1, 1, 6, 5)
    weights = routing_weights(torch.cat([equal, opposed], 1))
    assert (weights[:, 0] > 0.9).all()


def test_routing_to_one_output_is_a_sum() -> None:
    torch.manual_seed(0)
    layer, capsules = Capsules(7, 1, 4, 5), torch.randn(3, 7, 4)
    layer.weight.data *= 100
    all_votes = torch.stack([(layer.weight[0] @ image[..., None])[..., 0] for image in capsules])
    torch.testing.assert_close(layer(capsules)[:, 0], squash(all_votes.sum(1)))
    torch.testing.assert_close(layer(capsules), route(all_votes[:, None]))


def test_layer_routes_votes_of_one_matrix_per_capsule_pair() -> None:
    layer, capsules = Capsules(7, 2, 4, 5), torch.randn(3, 7, 4)
    all_votes = torch.stack([(layer.weight @ image[None, ..., None])[..., 0] for image in capsules])
    torch.testing.assert_close(layer(capsules), route(all_votes))


def test_routing_weights_have_no_gradient() -> None:
    all_votes = votes(2).requires_grad_()
    (gradient,) = torch.autograd.grad(route(all_votes).square().sum(), all_votes)
    fixed = routing_weights(all_votes)
    (expected,) = torch.autograd.grad(squash((fixed[..., None] * all_votes).sum(2)).square().sum(), all_votes)
    torch.testing.assert_close(gradient, expected)


def test_longest_returns_the_longest_capsule() -> None:
    capsules = torch.tensor([[[3.0, 0.0], [1.0, 1.0]], [[0.1, 0.0], [0.0, -0.2]]])
    assert torch.equal(longest(capsules), torch.tensor([[3.0, 0.0], [0.0, -0.2]]))
