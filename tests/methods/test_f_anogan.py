import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalad.methods.f_anogan import Downward, FAnoGan, FAnoGanConfig, Generator
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
    """The networks of which any bit is another than it was."""
    return {name.partition(".")[0] for name, now in detector.state_dict().items() if not torch.equal(before[name], now)}


def copied(detector: FAnoGan) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in detector.state_dict().items()}


def test_the_published_size_is_table_6s() -> None:
    with torch.device("meta"):
        model = FAnoGan(FAnoGanConfig(width=64))
    counts = [sum(part.numel() for part in network.parameters()) for network in model.children()]
    assert [count for count in counts if count] == [8_540_483, 7_491_841, 8_532_352]
    assert sum(counts) == 24_564_676


def test_the_critic_steps_always_and_the_generator_every_fifth_time(tmp_path: Path) -> None:
    detector, pixels = small(), cookies(4, (32, 48))
    gan = descent(detector, 0, tmp_path)
    detector.eval()
    gan.learner.train()
    for number in range(5):
        before = copied(detector)
        weights = [part.detach().clone() for part in detector.generator.parameters()]
        gan.step(pixels, 1e-3, number)
        moved = any(
            not torch.equal(was, now) for was, now in zip(weights, detector.generator.parameters(), strict=True)
        )
        assert moved == (number == 4)
        assert "critic" in changed(before, detector)
        assert "encoder" not in changed(before, detector)


def test_the_gan_is_frozen_while_the_encoder_learns(tmp_path: Path) -> None:
    """Bits unchanged: neither a weight nor a running mean of batch norm moves."""
    detector, pixels = small(), cookies(4, (32, 48))
    before = copied(detector)
    descent(detector, 1, tmp_path).run(pixels, pixels[:1], progress=False)
    assert changed(before, detector) == {"encoder"}


def test_the_encoder_learns_to_bring_images_back(tmp_path: Path) -> None:
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


def test_the_critic_treats_images_apart() -> None:
    """Group norm of one group, not batch norm: even in training mode, batch-mates change nothing."""
    critic = small().critic.train()
    assert not [layer for layer in critic.modules() if isinstance(layer, nn.BatchNorm2d)]
    groups = [layer.num_groups for layer in critic.modules() if isinstance(layer, nn.GroupNorm)]
    assert groups == [1] * 8
    batch = torch.rand(3, 3, 32, 48)
    torch.testing.assert_close(critic(batch)[1:2], critic(batch[1:2]))


def test_the_score_is_the_encoders_loss() -> None:
    """One image's score is the loss on that image alone (eq. 5 and 7), computed here from its parts."""
    detector = small(kappa=0.5).eval()
    images = to_batch(cookies(2, (32, 48)))
    with torch.no_grad():
        residuals = detector.residuals(images)
        assert residuals.score is not None
        drawn = detector.generator(torch.tanh(detector.encoder(2 * images - 1)))
        for index in range(2):
            of_image = (2 * images[index] - 1 - drawn[index]).square().mean()
            features = [detector.critic.body(each[index : index + 1]) for each in (2 * images - 1, drawn)]
            expected = of_image + 0.5 * (features[0] - features[1]).square().mean()
            torch.testing.assert_close(residuals.score[index], expected)
            torch.testing.assert_close(detector.loss(images[index : index + 1]), expected)
    torch.testing.assert_close(residuals.values, (drawn + 1) / 2 - images)


@pytest.mark.parametrize("size", [(4, 4), (2, 3)])
def test_networks_are_of_the_images_size(size: tuple[int, int]) -> None:
    height, width = 16 * size[0], 16 * size[1]
    drawn = Generator(5, [8, 8, 4, 2, 1], size)(torch.randn(2, 5))
    assert drawn.shape == (2, 3, height, width)
    assert drawn.abs().max() <= 1
    assert Downward([1, 2, 4, 8, 8], size[0] * size[1], 7, "batch")(drawn).shape == (2, 7)


def test_the_papers_protocol() -> None:
    gan, encoder = FAnoGan(FAnoGanConfig()).plan("paper")
    assert (gan.optimizer, gan.learning_rate, gan.betas, gan.batch_size) == ("adam", 1e-4, (0.0, 0.9), 64)
    assert (encoder.optimizer, encoder.learning_rate, encoder.batch_size) == ("rmsprop", 5e-5, 64)
    assert encoder.steps == 50_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_size=72", "multiples of 16 from 32 on"),
        ("image_size=16", "multiples of 16 from 32 on"),
        ("width=0", "at least 1"),
        ("kappa=-1", "must not be negative"),
        ("shift=-0.1", "shift between 0 and 0.5"),
        ("degrees=nan", "degrees must lie"),
    ],
)
def test_what_does_not_fit_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_texts(FAnoGanConfig, [text, "smoothing_sigma=0"])


def test_training_images_are_augmented_and_held_out_ones_are_not(tmp_path: Path) -> None:
    detector = small(degrees=10.0, shift=0.1)
    seen: list[Tensor] = []
    detector.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stage = descent(detector, 1, tmp_path).learner
    images = to_batch(np.asarray(cookies(2, (32, 48))))
    stage.loss(images)
    stage.objectives()[0].loss(images)
    torch.testing.assert_close(seen[0], 2 * images - 1)
    assert not torch.allclose(seen[1], seen[0], atol=0.1)
