import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from metalad.methods.vae import Vae, VaeConfig, divergence
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies


def small(**changes: object) -> Vae:
    torch.manual_seed(0)
    values = {"image_size": (32, 48), "smoothing_sigma": 1.0, "code": 6, "width": 4} | changes
    return Vae(VaeConfig(**values)).eval()  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 2))
def test_divergence_matches_torch(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    mean, log_deviation = scale * torch.randn(3, 7), scale * torch.randn(3, 7)
    expected = kl_divergence(Normal(mean, log_deviation.exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, log_deviation), expected, atol=1e-5, rtol=1e-4)
    assert torch.count_nonzero(divergence(torch.zeros(2, 7), torch.zeros(2, 7))) == 0


def test_map_and_score_use_the_absolute_error_of_the_decoded_mean() -> None:
    model, images = small(image_score="own"), to_batch(cookies(3, (32, 48)))
    with torch.no_grad():
        mean, log_deviation = model.encode(images)
        error = (model.decode(mean) - images).abs().sum(1)
        residuals = model.residuals(images)
        bound = error.sum((1, 2)) + divergence(mean, log_deviation)
        torch.testing.assert_close(model.raw_map(residuals), error)
        torch.testing.assert_close(residuals.score, bound)
        torch.testing.assert_close(model.loss(images), bound.mean())


def test_codes_are_sampled_from_the_predicted_gaussian_in_training() -> None:
    """Mean and standard deviation of many sampled codes must be those that the encoder returns."""
    model, images, decoder_inputs = small(), to_batch(cookies(1, (32, 48))), list[torch.Tensor]()
    model.decoder.register_forward_pre_hook(lambda _, inputs: decoder_inputs.append(inputs[0]))
    with torch.no_grad():
        model.log_deviation[0].bias += torch.linspace(-2, 1, 6)  # type: ignore[operator]
        mean, log_deviation = model.encode(images)
        model.training = True  # of this module only: batch normalization and dropout stay in evaluation mode
        model.loss(images.expand(2000, -1, -1, -1))
        model.eval()
        model.loss(images)
    codes, evaluated = decoder_inputs
    torch.testing.assert_close(codes.mean(0), mean[0], atol=0.2, rtol=0)
    torch.testing.assert_close(codes.std(0), log_deviation[0].exp(), rtol=0.1, atol=0)
    assert torch.equal(evaluated, mean)


def test_all_parameters_get_finite_gradients() -> None:
    model = small().train()
    model.loss(to_batch(cookies(3, (32, 48)))).backward()  # type: ignore[no-untyped-call]
    for name, tensor in model.named_parameters():
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name


@pytest.mark.parametrize(("side", "channels"), [(128, [32, 64, 128, 128]), (32, [32, 64]), (64, [32, 64, 128])])
def test_encoder_halves_down_to_eight_pixels(side: int, channels: list[int]) -> None:
    with torch.device("meta"):
        model = Vae(VaeConfig(image_size=(side, side)))
    images, widths = torch.empty(2, 3, side, side, device="meta"), []
    for part in list(model.encoder.children())[: len(channels)]:
        images = part(images)
        widths.append(images.shape[1])
    assert widths == channels
    assert images.shape[-2:] == (8, 8)


@pytest.mark.parametrize(
    ("changes", "message"), [({"image_size": (130, 128)}, "multiples of 16"), ({"code": 0}, "code")]
)
def test_invalid_settings_raise(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VaeConfig(**changes)  # type: ignore[arg-type]
