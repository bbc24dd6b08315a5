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


def sure(detector: OcGan) -> OcGan:
    """Make its weights as large as trained ones are, so that codes matter."""
    with torch.no_grad():
        for network in (detector.decoder, detector.classifier):
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                    layer.weight.mul_(10)
    return detector.eval()


def descent(detector: OcGan, stage: int, folder: Path) -> Descent:
    return Descent(detector, detector.plan("default")[stage], seed=0, precision="fp32", folder=folder)


@pytest.mark.parametrize("side", [29, 61, 125])
def test_images_go_through_one_pixel_and_back(side: int) -> None:
    detector = OcGan(OcGanConfig(image_size=(side, side), width=4)).eval()
    images = torch.rand(2, 3, side, side)
    code = detector.encoder(2 * images - 1)
    assert code.shape == (2, 16, 1, 1)
    assert code.abs().max() < 1
    assert detector.rebuild(images).shape == images.shape
    assert detector.image_discriminator(images).shape == detector.classifier(images).shape == (2, 1, 1, 1)
    assert detector.code_discriminator(code).shape == (2, 1)


def test_the_networks_are_the_authors() -> None:
    """Channels of each convolution and linear layer, at the default settings."""
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


def test_mined_codes_draw_what_the_classifier_calls_fake() -> None:
    """From the same random codes; each by itself, so that a code's batch does not matter."""
    detector = sure(small(mining_steps=20, mining_rate=0.1))
    torch.manual_seed(1)
    start = 2 * torch.rand(6, 4, 1, 1) - 1
    torch.manual_seed(1)
    mined = detector.mined(6)
    torch.manual_seed(1)
    torch.testing.assert_close(detector.mined(1)[0], mined[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        before, after = (
            adversarial_loss(detector.classifier(detector.decoder(codes)), real=False)
            for codes in (start.tanh(), mined)
        )
    assert after < before
    assert mined.abs().max() < 1
    assert not mined.requires_grad


def test_one_mining_step_is_a_gradient_step() -> None:
    """Of the cross-entropy of the code's own image, here by finite differences."""
    detector = sure(small(mining_rate=3.0))
    torch.manual_seed(1)
    start = 2 * torch.rand(2, 4, 1, 1) - 1
    torch.manual_seed(1)
    mined = detector.mined(2)

    def of(code: Tensor) -> float:
        return float(nn.functional.softplus(precise.classifier(precise.decoder(code[None].tanh()))).sum())

    precise, first = detector.double(), start[0].double()
    with torch.no_grad():
        steps = 1e-5 * torch.eye(4, dtype=torch.double).reshape(4, 4, 1, 1)
        slope = torch.tensor([(of(first + step) - of(first - step)) / 2e-5 for step in steps])
    assert slope.norm() > 1e-3
    torch.testing.assert_close(mined[0, :, 0, 0].double(), (first[:, 0, 0] - 3 * slope).tanh(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1])
def test_each_objective_moves_its_own_networks(tmp_path: Path, stage: int) -> None:
    detector, images = small(), to_batch(cookies(4, (29, 29)))
    run = descent(detector, stage, tmp_path)
    detector.eval()
    run.learner.train()
    names = ({"encoder", "decoder"}, {"image_discriminator", "code_discriminator"}, {"classifier"})
    for objective, wanted in zip(run.objectives, names, strict=True):
        weights = {name: part.detach().clone() for name, part in detector.named_parameters()}
        optimizer = torch.optim.SGD(objective.parameters, 0.1)
        optimizer.zero_grad()
        objective.loss(images).backward(inputs=objective.parameters)  # type: ignore[no-untyped-call]
        optimizer.step()
        now = dict(detector.named_parameters())
        moved = {name.partition(".")[0] for name, was in weights.items() if not torch.equal(was, now[name])}
        assert moved == wanted


def test_only_the_second_stage_mines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    mined = OcGan.mined

    def noted(self: OcGan, count: int) -> Tensor:
        asked.append(count)
        return mined(self, count)

    monkeypatch.setattr(OcGan, "mined", noted)
    for stage, expected in ((0, []), (1, [4])):
        run = descent(small(), stage, tmp_path)
        run.learner.train()
        run.objectives[0].loss(to_batch(cookies(4, (29, 29))))
        assert asked == expected


def test_noise_must_be_removed() -> None:
    """In training the code is that of a noisy image, and the clean one is wanted; to judge, nothing is added."""
    detector, images = small(noise=0.5).eval(), to_batch(cookies(2, (29, 29)))
    seen: list[Tensor] = []
    detector.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    run = descent(detector, 0, Path())
    run.objectives[0].loss(images)
    detector.loss(images)
    assert float((seen[0] - (2 * images - 1)).std()) == pytest.approx(0.5, rel=0.1)
    torch.testing.assert_close(seen[1], 2 * images - 1)


def test_the_score_is_the_mean_squared_error() -> None:
    detector, images = small().eval(), to_batch(cookies(2, (29, 29)))
    with torch.no_grad():
        residuals = detector.residuals(images)
        assert residuals.score is not None
        torch.testing.assert_close(residuals.score, 4 * residuals.values.square().mean((1, 2, 3)))
        torch.testing.assert_close(residuals.score.mean(), detector.loss(images))


def test_the_papers_protocol_mines_in_the_last_51_epochs() -> None:
    random, mined = OcGan(OcGanConfig()).plan("paper")
    assert (random.max_epochs, mined.max_epochs) == (150, 51)
    for plan in (random, mined):
        assert (plan.batch_size, plan.learning_rate, plan.betas, plan.steps) == (512, 2e-4, (0.5, 0.999), None)


def test_its_map_is_ours() -> None:
    assert method_named("ocgan").image_level
    assert copy.deepcopy(small()).has_own_score


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_size=64", "squares of 29, 61 or 125"),
        ("image_size=61x29", "squares of 29, 61 or 125"),
        ("latent=0", "at least 1"),
        ("mining_steps=0", "at least 1"),
        ("noise=-1", "must not be negative"),
    ],
)
def test_what_does_not_fit_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_texts(OcGanConfig, [text])
