import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metalad.detectors.gan import adversarial_loss
from metalad.methods import method_named
from metalad.methods.ocgan import OcGan, OcGanConfig
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import from_texts
from metalad.training.loop import Descent
from tests.cookies import cookies


def small(**settings: float) -> OcGan:
    torch.manual_seed(0)
    values = {"width": 8, "latent": 4, "smoothing_sigma": 0.5, **settings}
    return OcGan(OcGanConfig(image_size=(29, 29), **values))  # type: ignore[arg-type]


def with_large_weights(detector: OcGan) -> OcGan:
    """Scale the weights to the size of trained ones, so that outputs depend on the code."""
    with torch.no_grad():
        for network in (detector.decoder, detector.classifier):
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                    layer.weight.mul_(10)
    return detector.eval()


def descent(detector: OcGan, stage: int, folder: Path) -> Descent:
    return Descent(detector, detector.plan("default")[stage], seed=0, precision="fp32", folder=folder)


@pytest.mark.parametrize("side", [29, 61, 125])
def test_network_shapes(side: int) -> None:
    detector = OcGan(OcGanConfig(image_size=(side, side), width=4)).eval()
    images = torch.rand(2, 3, side, side)
    code = detector.encoder(2 * images - 1)
    assert code.shape == (2, 16, 1, 1)
    assert code.abs().max() < 1
    assert detector.reconstruct(images).shape == images.shape
    assert detector.image_discriminator(images).shape == detector.classifier(images).shape == (2, 1, 1, 1)
    assert detector.code_discriminator(code).shape == (2, 1)


def test_channels_match_the_authors_code() -> None:
    """Output channels of each convolution and linear layer, with default settings."""
    detector = OcGan(OcGanConfig())

    def channels(network: nn.Module) -> list[int]:
        kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        return [
            layer.weight.shape[int(isinstance(layer, nn.ConvTranspose2d))]
            for layer in network.modules()
            if isinstance(layer, kinds)
        ]

    assert channels(detector.encoder) == [64, 128, 256, 16]
    assert channels(detector.decoder) == [256, 128, 64, 3]
    assert channels(detector.image_discriminator) == [12, 24, 48, 1]
    assert channels(detector.classifier) == [64, 128, 256, 1]
    assert channels(detector.code_discriminator) == [128, 64, 32, 16, 1]


def test_mining_moves_codes_towards_images_labeled_as_fake() -> None:
    """The same random codes; each is mined independently of the others in the batch."""
    detector = with_large_weights(small(mining_steps=20, mining_rate=0.1))
    torch.manual_seed(1)
    start = 2 * torch.rand(6, 4, 1, 1) - 1
    torch.manual_seed(1)
    mined = detector.mined_codes(6)
    torch.manual_seed(1)
    torch.testing.assert_close(detector.mined_codes(1)[0], mined[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        before, after = (
            adversarial_loss(detector.classifier(detector.decoder(codes)), real=False)
            for codes in (start.tanh(), mined)
        )
    assert after < before
    assert mined.abs().max() < 1
    assert not mined.requires_grad


def test_mining_step_is_a_gradient_step() -> None:
    """The reference gradient of the cross-entropy is a finite difference."""
    detector = with_large_weights(small(mining_rate=3.0))
    torch.manual_seed(1)
    start = 2 * torch.rand(2, 4, 1, 1) - 1
    torch.manual_seed(1)
    mined = detector.mined_codes(2)

    def fake_loss(code: Tensor) -> float:
        return float(
            nn.functional.softplus(double_detector.classifier(double_detector.decoder(code[None].tanh()))).sum()
        )

    double_detector, first = detector.double(), start[0].double()
    with torch.no_grad():
        steps = 1e-5 * torch.eye(4, dtype=torch.double).reshape(4, 4, 1, 1)
        gradient = torch.tensor([(fake_loss(first + step) - fake_loss(first - step)) / 2e-5 for step in steps])
    assert gradient.norm() > 1e-3
    torch.testing.assert_close(mined[0, :, 0, 0].double(), (first[:, 0, 0] - 3 * gradient).tanh(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1])
def test_each_objective_updates_its_own_networks(tmp_path: Path, stage: int) -> None:
    detector, images = small(), to_batch(cookies(4, (29, 29)))
    run = descent(detector, stage, tmp_path)
    detector.eval()
    run.learner.train()
    names = ({"encoder", "decoder"}, {"image_discriminator", "code_discriminator"}, {"classifier"})
    for objective, expected in zip(run.objectives, names, strict=True):
        weights = {name: part.detach().clone() for name, part in detector.named_parameters()}
        optimizer = torch.optim.SGD(objective.parameters, 0.1)
        optimizer.zero_grad()
        objective.loss(images).backward(inputs=objective.parameters)  # type: ignore[no-untyped-call]
        optimizer.step()
        now = dict(detector.named_parameters())
        updated = {name.partition(".")[0] for name, old in weights.items() if not torch.equal(old, now[name])}
        assert updated == expected


def test_only_the_second_stage_mines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    mined_codes = OcGan.mined_codes

    def recorded(self: OcGan, count: int) -> Tensor:
        counts.append(count)
        return mined_codes(self, count)

    monkeypatch.setattr(OcGan, "mined_codes", recorded)
    for stage, expected in ((0, []), (1, [4])):
        run = descent(small(), stage, tmp_path)
        run.learner.train()
        run.objectives[0].loss(to_batch(cookies(4, (29, 29))))
        assert counts == expected


def test_noise_is_added_in_training_only() -> None:
    """Training encodes noisy images and compares with clean ones; evaluation adds no noise."""
    detector, images = small(noise=0.5).eval(), to_batch(cookies(2, (29, 29)))
    encoder_inputs: list[Tensor] = []
    detector.encoder.register_forward_pre_hook(lambda _, inputs: encoder_inputs.append(inputs[0].detach()))
    run = descent(detector, 0, Path())
    run.objectives[0].loss(images)
    detector.loss(images)
    assert float((encoder_inputs[0] - (2 * images - 1)).std()) == pytest.approx(0.5, rel=0.1)
    torch.testing.assert_close(encoder_inputs[1], 2 * images - 1)


def test_score_is_the_mean_squared_error() -> None:
    detector, images = small().eval(), to_batch(cookies(2, (29, 29)))
    with torch.no_grad():
        residuals = detector.residuals(images)
        assert residuals.score is not None
        torch.testing.assert_close(residuals.score, 4 * residuals.values.square().mean((1, 2, 3)))
        torch.testing.assert_close(residuals.score.mean(), detector.loss(images))


def test_paper_protocol_mines_in_the_last_51_epochs() -> None:
    random, mined = OcGan(OcGanConfig()).plan("paper")
    assert (random.max_epochs, mined.max_epochs) == (150, 51)
    for plan in (random, mined):
        assert (plan.batch_size, plan.learning_rate, plan.betas, plan.steps) == (512, 2e-4, (0.5, 0.999), None)


def test_method_is_image_level() -> None:
    assert method_named("ocgan").image_level
    assert copy.deepcopy(small()).has_own_score


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_size=64", "squares of 29, 61 or 125"),
        ("image_size=61x29", "squares of 29, 61 or 125"),
        ("latent=0", "at least 1"),
        ("mining_steps=0", "at least 1"),
        ("noise=-1", "must not be negative"),
    ],
)
def test_invalid_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_texts(OcGanConfig, [text])
