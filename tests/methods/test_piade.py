import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metalad.methods.piade import MIN_VARIANCE, Attention, Piade, PiadeConfig, Pyramid
from metalad.nn.backbones import Backbone
from metalad.nn.losses import ssim_map
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.settings import from_texts
from tests.cookies import cookies

SIZE = (56, 88)
"""Like the paper's 120: an image size that the decoder outputs without interpolation."""


def prepared(**changes: object) -> Piade:
    """A model with pretrained encoder weights, not trained."""
    torch.manual_seed(0)
    values = {"image_size": SIZE, "smoothing_sigma": 1.0} | changes
    model = Piade(PiadeConfig(**values)).eval()  # type: ignore[arg-type]
    model.prepare("train", cookies(4, model.config.image_size), 0)
    return model


@pytest.fixture(scope="module")
def model() -> Piade:
    return prepared()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_batch(cookies(3, SIZE))


# Size


def test_parameter_count_with_resnet_18_matches_the_paper() -> None:
    """The reference counts ResNet-18 without its classifier and the other parts of the authors' code."""
    model = Piade(PiadeConfig(backbone="resnet18"))
    attention = sum(2 * channels * channels // 16 for channels in (64, 64, 128, 256, 512))
    pyramid = sum(512 * 512 // part + 2 * 512 // part for part in (1, 2, 4, 8))
    vector_decoder = 64 * 128 + 3 * 128 + 128 * 512 + 3 * 512 + 512 * 8192 + 8192
    layers = [(256, 16, 3), (16, 32, 3), (32, 32, 4), (32, 3, 4)]
    image_decoder = sum(inputs * outputs * kernel**2 + outputs for inputs, outputs, kernel in layers) + 2 * 80
    expected = {"network": 11_176_512, "attention": attention, "pyramid": pyramid, "capsules": 2 * 120 * 64 * 8}
    expected |= {"vector_decoder": vector_decoder, "image_decoder": image_decoder}
    counts = {name: sum(part.numel() for part in child.parameters()) for name, child in model.named_children()}
    perceptual = counts.pop("judge_network")
    assert {name: count for name, count in counts.items() if count} == expected
    assert sum(expected.values()) == 16_174_643
    assert perceptual == 15_792


@pytest.mark.parametrize("side", [56, 120])
def test_decoder_outputs_the_papers_size(side: int) -> None:
    model = Piade(PiadeConfig(image_size=(side, side), smoothing_sigma=1.0))
    twice = 2 * model.config.grid[0]
    with torch.no_grad():
        assert model.image_decoder.eval()(torch.zeros(1, 208, twice, twice)).shape == (1, 3, side, side)


def test_other_sizes_are_interpolated() -> None:
    model = prepared(image_size=(40, 64))
    assert model.reconstruct(to_batch(cookies(2, (40, 64)))).shape == (2, 3, 40, 64)


# Parts


def test_attention_weights_channels_by_their_means() -> None:
    torch.manual_seed(0)
    attention, maps = Attention(32), torch.randn(2, 32, 3, 5)
    means = maps.mean((2, 3))
    weights = torch.sigmoid(torch.relu(means @ attention.squeeze.weight.T) @ attention.excite.weight.T)
    assert attention.squeeze.weight.shape == (2, 32)
    torch.testing.assert_close(attention(maps), torch.einsum("nchw,nc->nchw", maps, weights))


def test_pyramid_has_four_widths_and_ignores_positions() -> None:
    torch.manual_seed(0)
    pyramid, maps = Pyramid(64).eval(), torch.randn(2, 64, 3, 5)
    capsules = pyramid(maps)
    assert capsules.shape == (2, (64 + 32 + 16 + 8) // 8, 8)
    assert capsules.min() >= 0
    torch.testing.assert_close(capsules, pyramid(maps.flip(3)))


def test_encoder_starts_with_pretrained_weights(model: Piade) -> None:
    reference = Backbone("lite0", ("s32",))
    reference.load()
    for name, tensor in reference.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name


def test_perceptual_features_are_scaled_by_their_variance(model: Piade) -> None:
    (features,) = model.judge_network(to_batch(cookies(4, SIZE)))
    variance = np.var(features.transpose(0, 1).flatten(1).numpy(), axis=1, ddof=1)
    np.testing.assert_allclose(model.seen_variance[:, 0, 0].numpy(), np.maximum(variance, MIN_VARIANCE), rtol=1e-4)


def test_all_parts_are_trained_except_the_perceptual_network(images: torch.Tensor) -> None:
    model = prepared().train()
    model.loss(images).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name.startswith("judge_network"):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
    first = model.network.get_parameter("conv_stem.weight").grad
    assert first is not None
    assert first.abs().max() > 0


def test_perceptual_error_has_gradients_for_the_reconstruction(model: Piade, images: torch.Tensor) -> None:
    reconstruction = images.flip(3).requires_grad_()
    model._perceptual_error(reconstruction, images).sum().backward()  # type: ignore[no-untyped-call]
    assert reconstruction.grad is not None
    assert (reconstruction.grad.abs().amax((1, 2, 3)) > 0).all()


# Loss, map and score


def test_loss_matches_the_paper(model: Piade, images: torch.Tensor) -> None:
    with torch.no_grad():
        reconstruction = model.reconstruct(images)
        features, target = (model.judge_network(some)[0] for some in (reconstruction, images))
        perceptual = ((features - target) ** 2 / model.seen_variance).mean()
        expected = ((reconstruction - images) ** 2).mean() - ssim_map(reconstruction, images).mean() + perceptual
        torch.testing.assert_close(model.loss(images), expected)
        score = model.residuals(images).score
    assert score is not None
    assert (score > 0).all()
    torch.testing.assert_close(score.mean(), expected + 1)


def test_map_is_squared_error_plus_dissimilarity(model: Piade, images: torch.Tensor) -> None:
    with torch.no_grad():
        reconstruction, anomaly_map = model.reconstruct(images), model.raw_map(model.residuals(images))
    structure = F.pad(1 - ssim_map(reconstruction, images).mean(1, keepdim=True), (5, 5, 5, 5), mode="replicate")[:, 0]
    torch.testing.assert_close(anomaly_map, ((reconstruction - images) ** 2).sum(1) + structure)


def test_perfect_reconstruction_has_score_zero(
    model: Piade, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "reconstruct", lambda inputs: inputs.clone())
    residuals = model.residuals(images)
    assert residuals.score is not None
    torch.testing.assert_close(residuals.score, torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.raw_map(residuals), torch.zeros(3, *SIZE), rtol=0, atol=1e-5)


def test_training_with_a_single_image_raises() -> None:
    model = prepared().train()
    with pytest.raises(DataError, match="at least 2 good images"):
        model.loss(to_batch(cookies(1, SIZE)))


def test_paper_protocol_matches_the_authors_code(model: Piade) -> None:
    (plan,) = model.plan("paper")
    assert (plan.learning_rate, plan.batch_size, plan.max_epochs, plan.weight_decay) == (1e-3, 60, 400, 1e-3)
    assert plan.keep == "last"


@pytest.mark.parametrize(
    ("text", "message"),
    [("vectors=0", "vectors is 0"), ("backbone=vgg16", "one of lite0, lite1, resnet18, wide_resnet50_2")],
)
def test_invalid_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_texts(PiadeConfig, [text])


def test_resnet_without_weights_raises() -> None:
    model = Piade(PiadeConfig(backbone="resnet18", image_size=(24, 24), smoothing_sigma=1.0))
    with pytest.raises(ConfigError, match="weights=PATH"):
        model.prepare("train", cookies(2, (24, 24)), 0)
