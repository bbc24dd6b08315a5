import pytest
import torch
from torch import Tensor, nn

from metalad.methods.anogan import AnoGan, AnoGanConfig
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import from_texts
from tests.cookies import cookies

SIZE = (64, 64)


def small(**settings: float) -> AnoGan:
    """Scale the generator's weights: as after training, outputs depend on the code. Initially they are gray."""
    torch.manual_seed(0)
    values = {"width": 2, "latent": 6, "search_steps": 20, **settings}
    detector = AnoGan(AnoGanConfig(image_size=SIZE, smoothing_sigma=2.0, **values)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in detector.generator.modules():
            if isinstance(layer, nn.ConvTranspose2d | nn.Linear):
                layer.weight.mul_(10)
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.uniform_(-0.5, 0.5)
    return detector


def search_loss(detector: AnoGan, images: Tensor, generated: Tensor) -> Tensor:
    """The paper's loss: sums of absolute errors of image and features, weighted 0.9 and 0.1."""
    image_error = (images - generated).abs().flatten(1).sum(1)
    feature_error = (detector.features(images) - detector.features(generated)).abs().flatten(1).sum(1)
    loss: Tensor = 0.9 * image_error + 0.1 * feature_error
    return loss


def test_more_search_steps_lower_the_loss() -> None:
    images = to_batch(cookies(2, SIZE))
    losses = [small(search_steps=steps).search(images)[1] for steps in (1, 10, 40)]
    assert (losses[1] < losses[0]).all()
    assert (losses[2] < losses[1]).all()


def test_returned_loss_belongs_to_the_returned_image() -> None:
    detector, images = small(), to_batch(cookies(2, SIZE))
    generated, losses = detector.search(images)
    with torch.no_grad():
        torch.testing.assert_close(losses, search_loss(detector, 2 * images - 1, generated))


def test_search_returns_the_best_image_not_the_last() -> None:
    """With a far too high learning rate, no later code is better than the first one."""
    images = to_batch(cookies(1, SIZE))
    for rate in (0.02, 50.0):
        detector = small(search_rate=rate)
        with torch.no_grad():
            start = search_loss(detector, 2 * images - 1, detector.generator(torch.zeros(1, 6)))
        assert float(detector.search(images)[1]) <= float(start)


def test_search_finds_an_image_that_the_generator_can_produce() -> None:
    detector = small(search_steps=100)
    torch.manual_seed(1)
    with torch.no_grad():
        image = (detector.generator(0.3 * torch.randn(1, 6)) + 1) / 2
    other = to_batch(cookies(1, SIZE))
    reachable, unreachable = (float(detector.search(each)[1]) for each in (image, other))
    assert reachable < 0.2 * unreachable


def test_search_is_deterministic_and_independent_of_the_batch() -> None:
    """Equal bits: each image is searched separately, from the same code."""
    detector, images = small(), to_batch(cookies(3, SIZE))
    together = detector.search(images)[0]
    torch.manual_seed(99)
    for index in (2, 0, 1):
        assert torch.equal(detector.search(images[index : index + 1])[0][0], together[index])


def test_search_works_in_inference_mode_and_leaves_no_gradients() -> None:
    detector = small()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with torch.inference_mode():
        images = to_batch(cookies(2, SIZE))
        residuals = detector.residuals(images)
    torch.testing.assert_close(residuals.score, detector.search(images.clone())[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())
    assert all(weights.grad is None for weights in detector.parameters())
    assert not residuals.values.requires_grad


def test_parameter_count_matches_the_paper() -> None:
    with torch.device("meta"):
        detector = AnoGan(AnoGanConfig(width=64))
    generator = sum(part.numel() for part in detector.generator.parameters())
    total = sum(part.numel() for part in detector.parameters())
    assert (round(generator / 1e6, 1), round((total - generator) / 1e6, 1)) == (7.5, 7.0)


def test_paper_protocol_is_that_of_bergmann() -> None:
    (plan,) = AnoGan(AnoGanConfig()).plan("paper")
    assert (plan.learning_rate, plan.betas, plan.batch_size) == (2e-4, (0.5, 0.999), 64)
    assert plan.steps == 50 * 10_000 // 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_size=32", "multiples of 32, at least 64"),
        ("image_size=100", "multiples of 32, at least 64"),
        ("search_steps=0", "at least 1"),
        ("search_rate=0", "more than 0"),
        ("search_rate=nan", "more than 0"),
        ("feature_weight=1.5", "feature_weight in"),
        ("latent=0", "at least 1"),
    ],
)
def test_invalid_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_texts(AnoGanConfig, [text])
