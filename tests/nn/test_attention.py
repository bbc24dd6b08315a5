import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metalad.nn.attention import Mask, MaskedBlock, MaskedEncoder, neighbor_bias


def encoder(mask: Mask, depth: int, *, neighbours: bool = False, reach: int = 0) -> MaskedEncoder:
    torch.manual_seed(0)
    return MaskedEncoder(
        values=5,
        positions=torch.arange(6.0)[:, None],
        width=8,
        embedding_width=7,
        heads=2,
        feed_forward_ratio=2,
        depth=depth,
        mask=mask,
        neighbours=neighbours,
        reach=reach,
    )


def own_gradients(module: MaskedEncoder, tokens: Tensor) -> list[Tensor]:
    """Return the gradient of each token's output with respect to its own values."""
    tokens = tokens.clone().requires_grad_()
    weights = torch.randn(8)
    return [
        torch.autograd.grad((module(tokens)[:, index] @ weights).sum(), tokens)[0][:, index]
        for index in range(tokens.shape[1])
    ]


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_blind_tokens_do_not_depend_on_themselves(depth: int, neighbours: bool) -> None:
    for gradient in own_gradients(encoder("blind", depth, neighbours=neighbours), torch.randn(2, 6, 5)):
        assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_blind_tokens_do_not_depend_on_tokens_within_reach(depth: int) -> None:
    model, tokens = encoder("blind", depth, neighbours=True, reach=1), torch.randn(1, 6, 5).requires_grad_()
    for index in range(6):
        (gradient,) = torch.autograd.grad(model(tokens)[0, index] @ torch.arange(8.0), tokens)
        depends = gradient[0].abs().sum(1) > 0
        assert depends.tolist() == [abs(index - other) > 1 for other in range(6)]


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("mask", ["zero-logit", "none"])
def test_tokens_depend_on_themselves_with_other_masks(mask: Mask, depth: int, neighbours: bool) -> None:
    for gradient in own_gradients(encoder(mask, depth, neighbours=neighbours), torch.randn(2, 6, 5)):
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_blind_tokens_depend_on_all_other_tokens(depth: int, neighbours: bool) -> None:
    tokens = torch.randn(1, 6, 5, requires_grad=True)
    module = encoder("blind", depth, neighbours=neighbours)
    (gradient,) = torch.autograd.grad(module(tokens)[0, 2].square().sum(), tokens)
    assert gradient[0].abs().amax(1).gt(0).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("neighbours", [False, True])
def test_blind_tokens_do_not_depend_on_themselves_in_bfloat16(neighbours: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        gradients = own_gradients(encoder("blind", 2, neighbours=neighbours), torch.randn(2, 6, 5))
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients)


def logits_and_values(block: MaskedBlock, stream: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scaled dot products and the values of a block with one head."""
    logits = block.query(stream) @ block.key(content).transpose(1, 2) / math.sqrt(stream.shape[-1])
    return logits, block.value(content)


@pytest.mark.parametrize(("mask", "diagonal"), [("blind", -math.inf), ("zero-logit", 0.0), ("none", None)])
def test_attention_equals_softmax_with_masked_diagonal(mask: Mask, diagonal: float | None) -> None:
    torch.manual_seed(1)
    block, hidden = MaskedBlock(8, 1, 2, mask), torch.eye(6, dtype=torch.bool)
    stream, content = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    logits, values = logits_and_values(block, stream, content)
    if diagonal is not None:
        logits[:, range(6), range(6)] = diagonal
    attended = torch.softmax(logits, -1) @ values
    after = block.attention_norm(stream + block.output(attended))
    expected = block.feed_forward_norm(after + block.feed_forward(after))
    torch.testing.assert_close(block(stream, content, hidden), expected)


@pytest.mark.parametrize("mask", ["blind", "zero-logit", "none"])
def test_initial_attention_is_the_softmax_of_the_neighbor_bias(mask: Mask) -> None:
    """With zero queries the logits are the bias alone."""
    torch.manual_seed(3)
    bias, hidden = neighbor_bias(torch.arange(6.0)[:, None], heads=2), torch.eye(6, dtype=torch.bool)
    block, tokens = MaskedBlock(8, 2, 2, mask, bias), torch.randn(1, 6, 8)
    nn.init.zeros_(block.query.weight)
    nn.init.zeros_(block.query.bias)
    logits = bias.clone()
    if mask != "none":
        logits[:, range(6), range(6)] = -math.inf if mask == "blind" else 0.0
    values = block.value(tokens).reshape(1, 6, 2, 4).transpose(1, 2)
    attended = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
    after = block.attention_norm(tokens + block.output(attended))
    torch.testing.assert_close(
        block(tokens, tokens, hidden), block.feed_forward_norm(after + block.feed_forward(after))
    )


def test_neighbor_bias_has_another_side_for_each_head() -> None:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    first = neighbor_bias(grid, heads=6)[:, 12].argmax(-1)  # of the central token
    assert first.tolist() == [7, 17, 11, 13, 2, 22]  # above, below, left, right; two above, two below
    line = neighbor_bias(torch.arange(5.0)[:, None], heads=4)[:, 2].argmax(-1)
    assert line.tolist() == [1, 3, 0, 4]
    assert neighbor_bias(grid, heads=4, first=2)[:, 12].argmax(-1).tolist() == [2, 22, 10, 14]


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(8)))
def test_attention_is_invariant_to_head_permutation(order: list[int]) -> None:
    """Heads are permuted in every projection."""
    torch.manual_seed(2)
    block, hidden, tokens = MaskedBlock(16, 8, 2, "blind"), torch.eye(5, dtype=torch.bool), torch.randn(2, 5, 16)
    before = block(tokens, tokens, hidden)
    features = torch.tensor([2 * head + half for head in order for half in range(2)])
    with torch.no_grad():
        for layer in (block.query, block.key, block.value):
            layer.weight.copy_(layer.weight[features])
            layer.bias.copy_(layer.bias[features])
        block.output.weight.copy_(block.output.weight[:, features])
    torch.testing.assert_close(block(tokens, tokens, hidden), before)
