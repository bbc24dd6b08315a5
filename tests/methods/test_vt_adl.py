import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from metalad.methods.vt_adl import MAX_LOG_VARIANCE, Block, MixtureDensity, VtAdl, VtAdlConfig, mixture_cost
from metalad.nn.losses import ssim_map
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import from_texts
from tests.cookies import cookies

SIZE = (32, 48)
PUBLISHED = {"image_size": (512, 512), "patch_size": 64, "width": 512, "depth": 6, "heads": 8, "hidden_width": 1024}


def small(**changes: object) -> VtAdl:
    """A model of 4 x 6 patches of 8 pixels."""
    torch.manual_seed(0)
    values = {"image_size": SIZE, "patch_size": 8, "width": 64, "depth": 2, "heads": 2, "hidden_width": 16}
    values |= {"components": 3, "smoothing_sigma": 1.0}
    return VtAdl(VtAdlConfig(**values | changes)).eval()  # type: ignore[arg-type]


def mixture(components: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of two images of five patches, and logits, means and log-variances for each."""
    rng = torch.Generator().manual_seed(seed)
    embeddings, logits = torch.randn(2, 5, 8, generator=rng), torch.randn(2, 5, components, generator=rng)
    means = torch.randn(2, 5, components, 8, generator=rng)
    return embeddings, logits, means, torch.rand(2, 5, components, 8, generator=rng)


# Size


@pytest.mark.parametrize(("capsule", "total"), [(True, 41_100_563), (False, 24_323_347)])
def test_parameter_counts_match_the_authors_code(capsule: bool, total: int) -> None:
    with torch.device("meta"):
        model = VtAdl(VtAdlConfig(capsule=capsule, **PUBLISHED))  # type: ignore[arg-type]
    patch, width, hidden, tokens = 3 * 64 * 64, 512, 1024, 65
    block = 4 * width**2 + width + 2 * width * hidden + hidden + width + 4 * width
    transformer = patch * width + width + (tokens + 1) * width + 6 * block
    layers = [(8, 16, 3), (16, 32, 9), (32, 32, 7), (32, 16, 9), (16, 8, 6), (8, 3, 11)]
    decoder = sum(inputs * outputs * kernel**2 + outputs for inputs, outputs, kernel in layers)
    decoder += 2 * sum(outputs for _, outputs, _ in layers[:-1])
    density = width * 10 + 2 * width * 10 * width
    expected = {"transformer": transformer, "decoder": decoder, "density": density}
    expected |= {"capsule": 4096 * 512 * 8} if capsule else {}
    counts = {name: sum(part.numel() for part in child.parameters()) for name, child in model.named_children()}
    assert {name: count for name, count in counts.items() if count} == expected
    assert sum(expected.values()) == total
    assert [round(count / 1e6, 2) for count in (transformer, decoder, density)] == [18.93, 0.14, 5.25]


@pytest.mark.parametrize("side", [16, 64, 256, 512, 1024])
def test_decoder_outputs_the_image_size(side: int) -> None:
    with torch.device("meta"):
        model = VtAdl(
            VtAdlConfig(image_size=(side, side), patch_size=side // 2, smoothing_sigma=1.0, width=64, heads=1)
        )
        assert model.decoder(torch.empty(2, 1, 8, 8)).shape == (2, 3, side, side)


def test_other_sizes_are_interpolated() -> None:
    model = small()
    assert model.reconstruct(torch.randn(2, 24, 64)).shape == (2, 3, *SIZE)


# Likelihood


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_cost_is_the_negative_log_likelihood_of_the_mixture(components: int, seed: int) -> None:
    embeddings, logits, means, log_variances = mixture(components, seed)
    parts = Independent(Normal(means, (log_variances / 2).exp()), 1)
    distribution = MixtureSameFamily(Categorical(logits=logits), parts)
    constant = 8 / 2 * math.log(2 * math.pi)
    nll = mixture_cost(embeddings, logits, means, log_variances, "logsumexp")
    torch.testing.assert_close(nll, -distribution.log_prob(embeddings) - constant, rtol=1e-4, atol=1e-4)  # type: ignore[no-untyped-call]
    component_nll = -parts.log_prob(embeddings[..., None, :]) - constant  # type: ignore[no-untyped-call]
    expected = (Categorical(logits=logits).probs * component_nll).sum(-1)
    repo = mixture_cost(embeddings, logits, means, log_variances, "repo")
    torch.testing.assert_close(repo, expected, rtol=1e-4, atol=1e-4)
    assert (repo >= nll - 1e-5).all()
    assert (nll >= -1e-6).all()


def test_both_costs_are_equal_for_one_component() -> None:
    one, other = (mixture_cost(*mixture(1), kind) for kind in ("repo", "logsumexp"))
    torch.testing.assert_close(one, other)


def test_variances_are_at_least_1_and_bounded() -> None:
    torch.manual_seed(0)
    density = MixtureDensity(8, 3)
    for size in (0.0, 1.0, 1e6):
        embeddings = size * torch.randn(4, 8)
        logits, means, log_variances = density(embeddings)
        assert 0 <= log_variances.min() <= log_variances.max() <= MAX_LOG_VARIANCE
        for kind in ("repo", "logsumexp"):
            costs = mixture_cost(embeddings, logits, means, log_variances, kind)
            assert costs.isfinite().all()
            assert (costs >= 0).all()


# Transformer


def test_attention_is_scaled_by_the_whole_width() -> None:
    torch.manual_seed(0)
    block, tokens = Block(8, 2, 16), torch.randn(1, 5, 8)
    block.perceptron = nn.Sequential(nn.Linear(8, 8))
    for parameter in block.perceptron.parameters():
        nn.init.zeros_(parameter)
    query, key, value = block.to_qkv(block.attention_norm(tokens))[0].chunk(3, 1)
    heads = [
        (query[:, part] @ key[:, part].T / math.sqrt(8)).softmax(1) @ value[:, part]
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(block(tokens)[0], tokens[0] + block.output(torch.cat(heads, 1)))


def test_tokens_are_patches_in_row_major_order() -> None:
    """Without blocks, an embedding depends only on the pixels of its own patch."""
    model, images = small(), torch.rand(1, 3, *SIZE, requires_grad=True)
    model.transformer.blocks = nn.Sequential()
    for token in (0, 5, 6, 23):
        (gradient,) = torch.autograd.grad(model.embed(images)[0, token].square().sum(), images)
        influence = gradient.abs().amax((0, 1)).reshape(4, 8, 6, 8).amax((1, 3)).flatten()
        assert influence.nonzero().flatten().tolist() == [token]


def test_embedding_depends_on_all_patches() -> None:
    model, images = small(), torch.rand(1, 3, *SIZE, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.embed(images)[0, 7].square().sum(), images)
    assert (gradient.abs().amax((0, 1)).reshape(4, 8, 6, 8).amax((1, 3)) > 0).all()


def test_noise_is_added_in_training_only() -> None:
    model, images = small(noise=0.5), torch.rand(4, 3, *SIZE)
    with torch.no_grad():
        noise_free = model.embed(images)
        assert torch.equal(noise_free, model.embed(images))
        noise = model.train().embed(images) - noise_free
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert torch.equal(small(noise=0.0).train().embed(images), small().embed(images))


# Loss, map and score


def test_loss_matches_the_authors_code() -> None:
    model, images = small(), to_batch(cookies(3, SIZE))
    embeddings = model.embed(images)
    reconstruction, costs = model.reconstruct(embeddings), model.cost(embeddings)
    expected = (
        5 * ((reconstruction - images) ** 2).mean() - 0.5 * ssim_map(reconstruction, images).mean() + costs.sum() / 3
    )
    torch.testing.assert_close(model.loss(images), expected)


def test_all_parts_are_trained() -> None:
    model = small().train()
    model.loss(to_batch(cookies(3, SIZE))).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("token", [0, 8, 23])
def test_map_shows_the_patch_of_high_cost(token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    costs = torch.full((1, 24), 2.0)
    costs[0, token] = 7.0
    monkeypatch.setattr(model, "cost", lambda _: costs)
    anomaly_map = model.raw_map(model.residuals(torch.rand(1, 3, *SIZE)))[0]
    assert float(anomaly_map.min()) == pytest.approx(2.0)
    row, column = divmod(int(anomaly_map.argmax()), SIZE[1])
    assert (row // 8, column // 8) == divmod(token, 6)


def test_own_score_is_error_plus_dissimilarity_plus_maximum_cost() -> None:
    model, images = small(image_score="own"), to_batch(cookies(3, SIZE))
    with torch.no_grad():
        embeddings = model.embed(images)
        reconstruction, costs = model.reconstruct(embeddings), model.cost(embeddings)
        scores = model.residuals(images).score
        assert scores is not None
        for image, other, cost, score in zip(images, reconstruction, costs, scores, strict=True):
            structure = ssim_map(other[None], image[None]).mean()
            torch.testing.assert_close(score, ((other - image) ** 2).mean() + 1 - structure + cost.max())
            assert score > 0


def test_without_capsule_the_sum_of_embeddings_is_decoded() -> None:
    model, embeddings = small(capsule=False), torch.randn(1, 24, 64)
    shuffled = embeddings[:, torch.randperm(24)]
    torch.testing.assert_close(model.reconstruct(embeddings), model.reconstruct(shuffled))
    routed = small()
    assert not torch.allclose(routed.reconstruct(embeddings), routed.reconstruct(shuffled))


def test_paper_protocol_matches_the_authors_code() -> None:
    (plan,) = small().plan("paper")
    assert (plan.learning_rate, plan.batch_size, plan.max_epochs, plan.weight_decay) == (1e-4, 8, 400, 1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patch_size=15", "patch_size 15 does not divide image_size 256x256"),
        ("patch_size=0", "patch_size 0"),
        ("width=100", "multiple of 64"),
        ("heads=7", "of heads 7"),
        ("components=0", "at least 1"),
        ("noise=-1", "noise is -1.0"),
        ("noise=nan", "noise is nan"),
        ("mdn=em", "one of repo, logsumexp"),
    ],
)
def test_invalid_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_texts(VtAdlConfig, [text])
