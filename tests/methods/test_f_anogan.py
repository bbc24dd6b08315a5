import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalad.methods.f_anogan import DownsamplingNetwork, FAnoGan, FAnoGanConfig, Generator
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import from_texts
from metalad.training.loop import Descent
from tests.cookies import cookies


def small(**settings: float) -> FAnoGan:
    torch.manual_seed(0)
    values = {"width": 4, "latent": 8, **settings}
    return FAnoGan(FAnoGanConfig(image_size=(32, 48), **values))  # type: ignore[arg-type]


def descent(detector: FAnoGan, stage: int, folder: Path) -> Descent:
    plan = dataclasses.replace(detector.plan("default")[stage], steps=None, max_epochs=2)
    return Descent(detector, plan, seed=0, precision="fp32", folder=folder)


def changed(before: dict[str, Tensor], detector: FAnoGan) -> set[str]:
    """Names of the networks with any changed bit."""
    return {name.partition(".")[0] for name, new in detector.state_dict().items() if not torch.equal(before[name], new)}


def copied(detector: FAnoGan) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in detector.state_dict().items()}


def test_parameter_count_matches_table_6() -> None:
    with torch.device("meta"):
        model = FAnoGan(FAnoGanConfig(width=64))
    counts = [sum(part.numel() for part in network.parameters()) for network in model.children()]
    assert [count for count in counts if count] == [8_540_483, 7_491_841, 8_532_352]
    assert sum(counts) == 24_564_676


def test_critic_is_updated_every_step_and_generator_every_fifth(tmp_path: Path) -> None:
    detector, pixels = small(), cookies(4, (32, 48))
    gan = descent(detector, 0, tmp_path)
    detector.eval()
    gan.learner.train()
    for number in range(5):
        before = copied(detector)
        weights = [part.detach().clone() for part in detector.generator.parameters()]
        gan.step(pixels, 1e-3, number)
        generator_changed = any(
            not torch.equal(old, new) for old, new in zip(weights, detector.generator.parameters(), strict=True)
        )
        assert generator_changed == (number == 4)
        assert "critic" in changed(before, detector)
        assert "encoder" not in changed(before, detector)


def test_gan_is_frozen_during_encoder_training(tmp_path: Path) -> None:
    """No bit changes: neither weights nor running means of batch norm."""
    detector, pixels = small(), cookies(4, (32, 48))
    before = copied(detector)
    descent(detector, 1, tmp_path).run(pixels, pixels[:1])
    assert changed(before, detector) == {"encoder"}


def test_encoder_training_lowers_the_loss(tmp_path: Path) -> None:
    detector, pixels = small(), cookies(4, (32, 48))
    detector.eval()
    with torch.no_grad():
        before = detector.loss(to_batch(pixels))
    run = descent(detector, 1, tmp_path)
    detector.eval()
    run.learner.train()
    for number in range(30):
        run.step(pixels, 1e-3, number)
    detector.eval()
    with torch.no_grad():
        assert detector.loss(to_batch(pixels)) < before


def test_critic_does_not_mix_images_of_a_batch() -> None:
    """Group norm with one group, not batch norm: outputs are independent also in training mode."""
    critic = small().critic.train()
    assert not [layer for layer in critic.modules() if isinstance(layer, nn.BatchNorm2d)]
    groups = [layer.num_groups for layer in critic.modules() if isinstance(layer, nn.GroupNorm)]
    assert groups == [1] * 8
    batch = torch.rand(3, 3, 32, 48)
    torch.testing.assert_close(critic(batch)[1:2], critic(batch[1:2]))


def test_score_is_the_encoder_loss() -> None:
    """An image's score is the loss on that image alone (eq. 5 and 7)."""
    detector = small(kappa=0.5).eval()
    images = to_batch(cookies(2, (32, 48)))
    with torch.no_grad():
        residuals = detector.residuals(images)
        assert residuals.score is not None
        reconstruction = detector.generator(torch.tanh(detector.encoder(2 * images - 1)))
        for index in range(2):
            image_error = (2 * images[index] - 1 - reconstruction[index]).square().mean()
            features = [detector.critic.body(each[index : index + 1]) for each in (2 * images - 1, reconstruction)]
            expected = image_error + 0.5 * (features[0] - features[1]).square().mean()
            torch.testing.assert_close(residuals.score[index], expected)
            torch.testing.assert_close(detector.loss(images[index : index + 1]), expected)
    torch.testing.assert_close(residuals.values, (reconstruction + 1) / 2 - images)


@pytest.mark.parametrize("size", [(4, 4), (2, 3)])
def test_networks_match_the_image_size(size: tuple[int, int]) -> None:
    height, width = 16 * size[0], 16 * size[1]
    images = Generator(5, [8, 8, 4, 2, 1], size)(torch.randn(2, 5))
    assert images.shape == (2, 3, height, width)
    assert images.abs().max() <= 1
    assert DownsamplingNetwork([1, 2, 4, 8, 8], size[0] * size[1], 7, "batch")(images).shape == (2, 7)


def test_paper_protocol() -> None:
    gan, encoder = FAnoGan(FAnoGanConfig()).plan("paper")
    assert (gan.optimizer, gan.learning_rate, gan.betas, gan.batch_size) == ("adam", 1e-4, (0.0, 0.9), 64)
    assert (encoder.optimizer, encoder.learning_rate, encoder.batch_size) == ("rmsprop", 5e-5, 64)
    assert encoder.steps == 50_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_size=72", "multiples of 16, at least 32"),
        ("image_size=16", "multiples of 16, at least 32"),
        ("width=0", "at least 1"),
        ("kappa=-1", "must not be negative"),
        ("shift=-0.1", "shift between 0 and 0.5"),
        ("degrees=nan", "degrees must lie"),
    ],
)
def test_invalid_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_texts(FAnoGanConfig, [text, "smoothing_sigma=0"])


def test_only_training_images_are_augmented(tmp_path: Path) -> None:
    detector = small(degrees=10.0, shift=0.1)
    encoder_inputs: list[Tensor] = []
    detector.encoder.register_forward_pre_hook(lambda _, inputs: encoder_inputs.append(inputs[0]))
    stage = descent(detector, 1, tmp_path).learner
    images = to_batch(np.asarray(cookies(2, (32, 48))))
    stage.loss(images)
    stage.objectives()[0].loss(images)
    torch.testing.assert_close(encoder_inputs[0], 2 * images - 1)
    assert not torch.allclose(encoder_inputs[1], encoder_inputs[0], atol=0.1)
