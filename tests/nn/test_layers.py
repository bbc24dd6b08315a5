import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from metalad.nn.attention import Mask, MaskedBlock, MaskedEncoder, nearness
from metalad.nn.smoothing import COARSER, EDGE, GuidedSmoothing, Smoothing, gaussian_matrix

SIDES = st.integers(1, 40)
SIGMAS = st.sampled_from([0.3, 1.0, 1.5, 4.0, 9.0])


def encoder(mask: Mask, depth: int, *, neighbours: bool = False, reach: int = 0) -> MaskedEncoder:
    torch.manual_seed(0)
    return MaskedEncoder(
        values=5,
        places=torch.arange(6.0)[:, None],
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
    """The gradient of each token's output to its own values."""
    tokens = tokens.clone().requires_grad_()
    weights = torch.randn(8)
    return [
        torch.autograd.grad((module(tokens)[:, index] @ weights).sum(), tokens)[0][:, index]
        for index in range(tokens.shape[1])
    ]


@settings(deadline=None)
@given(SIDES, SIDES, SIGMAS, st.integers(0, 2**32 - 1))
def test_smoothing_is_scipys_gaussian_filter(height: int, width: int, sigma: float, seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, height, width), dtype=np.float32)
    expected = ndimage.gaussian_filter(maps.astype(float), sigma, mode="reflect", axes=(1, 2))
    np.testing.assert_allclose(Smoothing(height, width, sigma)(torch.from_numpy(maps)).numpy(), expected, atol=1e-6)


@settings(deadline=None)
@given(SIDES, SIGMAS)
def test_smoothing_keeps_a_constant_map(size: int, sigma: float) -> None:
    matrix = gaussian_matrix(size, sigma)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(size), atol=1e-6, rtol=0)


def test_smoothing_by_nothing_changes_nothing() -> None:
    maps = torch.rand(2, 5, 7)
    assert torch.equal(Smoothing(5, 7, 0.0)(maps), maps)


def test_smoothing_is_not_stored_with_the_model() -> None:
    assert not Smoothing(8, 8, 1.0).state_dict()


def halves(side: int) -> tuple[Tensor, Tensor]:
    """An image dark on the left and bright on the right, and a map that is 1 on the right."""
    step = (torch.arange(side) >= side // 2).float().expand(1, side, side)
    return (0.2 + 0.6 * step)[:, None].expand(1, 3, side, side), step


def test_guided_smoothing_is_the_guided_filter() -> None:
    """By scipy in double precision: a line in brightness at each place, by least squares under a Gaussian window."""
    rng, sigma = np.random.default_rng(0), 3.0
    images, maps = rng.random((2, 3, 24, 40), dtype=np.float32), rng.random((2, 24, 40), dtype=np.float32)

    def window(planes: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(planes, sigma / math.sqrt(2) / COARSER, mode="reflect", axes=(1, 2)))

    def coarse(planes: np.ndarray) -> np.ndarray:
        return np.asarray(planes.reshape(2, 24 // COARSER, COARSER, 40 // COARSER, COARSER).mean((2, 4)))

    guide = images.astype(float).mean(1)
    guide /= guide.mean((1, 2), keepdims=True)
    brightness, level = coarse(guide), coarse(maps.astype(float))
    covariance = window(brightness * level) - window(brightness) * window(level)
    slope = covariance / (window(brightness**2) - window(brightness) ** 2 + EDGE**2)
    lines = [window(slope), window(window(level) - slope * window(brightness))]
    fine = [
        nn.functional.interpolate(torch.from_numpy(line)[:, None], (24, 40), mode="bilinear")[:, 0] for line in lines
    ]
    found = GuidedSmoothing(24, 40, sigma)(torch.from_numpy(maps), torch.from_numpy(images))
    np.testing.assert_allclose(found, fine[0].numpy() * guide + fine[1].numpy(), atol=1e-5)


@settings(deadline=None)
@given(SIDES, SIDES, SIGMAS, st.integers(0, 2**32 - 1))
def test_guided_smoothing_keeps_a_constant_map(height: int, width: int, sigma: float, seed: int) -> None:
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    found = GuidedSmoothing(height, width, sigma)(torch.full((1, height, width), 0.5), images)
    torch.testing.assert_close(found, torch.full((1, height, width), 0.5), atol=1e-3, rtol=0)


def test_on_a_plain_image_guided_smoothing_is_the_gaussian_filter() -> None:
    point = torch.zeros(1, 64, 64)
    point[0, 31:33, 31:33] = 100.0
    found = GuidedSmoothing(64, 64, 6.0)(point, torch.full((1, 3, 64, 64), 0.7))
    torch.testing.assert_close(found, Smoothing(64, 64, 6.0)(point), atol=0.05 * float(found.max()), rtol=0)


def test_guided_smoothing_stops_at_the_edges_of_the_image() -> None:
    images, step = halves(64)
    guided, gaussian = GuidedSmoothing(64, 64, 6.0)(step, images), Smoothing(64, 64, 6.0)(step)
    assert (guided - step).abs().mean() < (gaussian - step).abs().mean() / 4


@pytest.mark.parametrize("light", [0.3, 1.5])
def test_guided_smoothing_does_not_mind_the_light(light: float) -> None:
    images, step = halves(32)
    module, maps = GuidedSmoothing(32, 32, 3.0), Smoothing(32, 32, 2.0)(step)
    torch.testing.assert_close(module(maps, light * images), module(maps, images), atol=1e-4, rtol=0)


def test_a_black_image_guides_nowhere() -> None:
    found = GuidedSmoothing(16, 16, 2.0)(torch.rand(1, 16, 16), torch.zeros(1, 3, 16, 16))
    assert found.isfinite().all()


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_blind_token_never_sees_itself(depth: int, neighbours: bool) -> None:
    for gradient in own_gradients(encoder("blind", depth, neighbours=neighbours), torch.randn(2, 6, 5)):
        assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_within_reach_of_a_blind_token_is_as_hidden_as_itself(depth: int) -> None:
    model, tokens = encoder("blind", depth, neighbours=True, reach=1), torch.randn(1, 6, 5).requires_grad_()
    for index in range(6):
        (gradient,) = torch.autograd.grad(model(tokens)[0, index] @ torch.arange(8.0), tokens)
        seen = gradient[0].abs().sum(1) > 0
        assert seen.tolist() == [abs(index - other) > 1 for other in range(6)]


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("mask", ["zero-logit", "none"])
def test_the_other_masks_let_a_token_see_itself(mask: Mask, depth: int, neighbours: bool) -> None:
    for gradient in own_gradients(encoder(mask, depth, neighbours=neighbours), torch.randn(2, 6, 5)):
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_blind_token_sees_every_other(depth: int, neighbours: bool) -> None:
    tokens = torch.randn(1, 6, 5, requires_grad=True)
    module = encoder("blind", depth, neighbours=neighbours)
    (gradient,) = torch.autograd.grad(module(tokens)[0, 2].square().sum(), tokens)
    assert gradient[0].abs().amax(1).gt(0).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("neighbours", [False, True])
def test_a_blind_token_never_sees_itself_in_bfloat16(neighbours: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        gradients = own_gradients(encoder("blind", 2, neighbours=neighbours), torch.randn(2, 6, 5))
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients)


def attention_weights(block: MaskedBlock, stream: Tensor, content: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot products and values of one head of the block, written out."""
    del hidden
    logits = block.query(stream) @ block.key(content).transpose(1, 2) / math.sqrt(stream.shape[-1])
    return logits, block.value(content)


@pytest.mark.parametrize(("mask", "diagonal"), [("blind", -math.inf), ("zero-logit", 0.0), ("none", None)])
def test_attention_is_a_softmax_with_another_diagonal(mask: Mask, diagonal: float | None) -> None:
    torch.manual_seed(1)
    block, hidden = MaskedBlock(8, 1, 2, mask), torch.eye(6, dtype=torch.bool)
    stream, content = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    logits, values = attention_weights(block, stream, content, hidden)
    if diagonal is not None:
        logits[:, range(6), range(6)] = diagonal
    attended = torch.softmax(logits, -1) @ values
    after = block.attention_norm(stream + block.output(attended))
    expected = block.feed_forward_norm(after + block.feed_forward(after))
    torch.testing.assert_close(block(stream, content, hidden), expected)


@pytest.mark.parametrize("mask", ["blind", "zero-logit", "none"])
def test_attention_begins_beside_where_it_is_told_to(mask: Mask) -> None:
    """With queries of nothing only the nearness is left: each head's output is the values by its softmax."""
    torch.manual_seed(3)
    near, hidden = nearness(torch.arange(6.0)[:, None], heads=2), torch.eye(6, dtype=torch.bool)
    block, tokens = MaskedBlock(8, 2, 2, mask, near), torch.randn(1, 6, 8)
    nn.init.zeros_(block.query.weight)
    nn.init.zeros_(block.query.bias)
    logits = near.clone()
    if mask != "none":
        logits[:, range(6), range(6)] = -math.inf if mask == "blind" else 0.0
    values = block.value(tokens).reshape(1, 6, 2, 4).transpose(1, 2)
    attended = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
    after = block.attention_norm(tokens + block.output(attended))
    torch.testing.assert_close(
        block(tokens, tokens, hidden), block.feed_forward_norm(after + block.feed_forward(after))
    )


def test_each_head_begins_on_a_side_of_its_own() -> None:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    first = nearness(grid, heads=6)[:, 12].argmax(-1)  # of the token in the middle
    assert first.tolist() == [7, 17, 11, 13, 2, 22]  # above, below, before, behind; two above, two below
    line = nearness(torch.arange(5.0)[:, None], heads=4)[:, 2].argmax(-1)
    assert line.tolist() == [1, 3, 0, 4]
    assert nearness(grid, heads=4, first=2)[:, 12].argmax(-1).tolist() == [2, 22, 10, 14]


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(8)))
def test_heads_are_independent(order: list[int]) -> None:
    """Permuting whole heads in every projection changes nothing."""
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
