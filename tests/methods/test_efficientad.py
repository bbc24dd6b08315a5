from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from metalad.detectors.distillation import random_variants
from metalad.methods.efficientad import (
    Autoencoder,
    EfficientAD,
    EfficientADConfig,
    hard_loss,
    jittered,
    patch_descriptor,
)
from metalad.nn.pixels import to_batch
from metalad.pipelines.train import train
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies, put_cookies

SIZE = (48, 64)
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
TINY: dict[str, object] = {
    "image_size": SIZE,
    "smoothing_sigma": 1.0,
    "width": 4,
    "channels": 24,
    "autoencoder": 4,
    "taps": ("s4",),
}


def small(**changes: object) -> EfficientAD:
    """With a distilled, untrained teacher."""
    torch.manual_seed(0)
    return EfficientAD(EfficientADConfig(**TINY | {"teacher": "distilled"} | changes)).eval()  # type: ignore[arg-type]


def test_parameter_counts_match_the_paper() -> None:
    """S: 2.694M, 4.267M and 1.096M, 8.06M in total; M: 8.03M and 11.62M."""
    for size, width, expected in (
        ("small", 128, [2_694_144, 4_267_392, 1_096_320]),
        ("medium", 256, [8_026_624, 11_615_488, 1_096_320]),
    ):
        model = small(image_size=(256, 256), size=size, width=width, channels=384, autoencoder=64)
        parts = (model.teacher, model.student, model.autoencoder)
        assert [sum(tensor.numel() for tensor in part.parameters()) for part in parts] == expected


@pytest.mark.parametrize("size", ["small", "medium"])
def test_receptive_field_is_33_pixels_and_stride_is_4(size: str) -> None:
    net = patch_descriptor(size, 4, 5).double()  # type: ignore[arg-type]
    images = torch.rand(1, 3, 64, 72, dtype=torch.double, requires_grad=True)
    features = net(images)
    assert features.shape == (1, 5, 64 // 4 - 8, 72 // 4 - 8)
    (gradient,) = torch.autograd.grad(features[0, :, 3, 5].square().sum(), images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    assert rows[[0, -1]].tolist() == [12, 12 + 32]
    assert columns[[0, -1]].tolist() == [20, 20 + 32]


def test_autoencoder_bottleneck_has_one_position_for_the_papers_image_size() -> None:
    net = Autoencoder((256, 256), 4, 6)
    assert net.encoder(torch.zeros(1, 3, 256, 256)).shape == (1, 4, 1, 1)
    assert list(net.sizes()) == [(3, 3), (8, 8), (15, 15), (32, 32), (63, 63), (127, 127)]
    assert net(torch.zeros(1, 3, 256, 256), (56, 56)).shape == (1, 6, 56, 56)


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (1, 2, 3, 4), (3, 1, 1, 1)])
def test_hard_loss_averages_errors_above_the_quantile(shape: tuple[int, ...]) -> None:
    errors = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
    flat = errors.flatten(1).double().numpy()
    expected = np.mean([image[image >= np.quantile(image, 0.999)].mean() for image in flat])
    assert float(hard_loss(errors)) == pytest.approx(expected, rel=1e-6)


def test_loss_matches_algorithm_1() -> None:
    """Algorithm 1 without jitter; student and autoencoder get gradients, the teacher none."""
    model = small(jitter=False)
    model.prepare("student", cookies(4, SIZE), 0)
    images = to_batch(cookies(1, SIZE))
    normalised = (images - MEAN) / DEVIATION
    target = (model.teacher(normalised) - model.target.mean) / model.target.deviation
    predicted = model.student(normalised)
    reconstructed = model.autoencoder(normalised, (4, 8))
    errors = (predicted[:, :24] - target).square()
    hard = errors[errors >= torch.quantile(errors, 0.999)].mean()
    expected = hard + F.mse_loss(reconstructed, target) + F.mse_loss(predicted[:, 24:], reconstructed)
    loss = model.loss(images)
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is None for tensor in model.teacher.parameters())
    for part in (model.student, model.autoencoder):
        assert all(tensor.grad is not None for tensor in part.parameters())


def test_penalty_is_the_mean_square_on_altered_images() -> None:
    """The penalty is the mean square of the student's first half on altered images."""
    plain, penalised = small(jitter=False), small(jitter=False, penalty="varied")
    images = to_batch(cookies(2, SIZE))
    torch.manual_seed(1)
    altered = random_variants(images, SIZE)
    torch.manual_seed(1)
    with torch.no_grad():
        more = penalised.loss(images) - plain.loss(images)
        predicted = penalised.student((altered - MEAN) / DEVIATION)[:, :24]
    torch.testing.assert_close(more, predicted.square().mean(), rtol=1e-3, atol=1e-5)


def test_jitter_changes_one_property_by_at_most_a_fifth() -> None:
    torch.manual_seed(0)
    images = 0.3 + 0.3 * torch.rand(60, 3, 5, 5)
    changed = jittered(images)
    gray, new_gray = images.mean(1), changed.mean(1)
    kept_saturation = torch.isclose(gray, new_gray, atol=1e-6).all(2).all(1)
    kept_mean = torch.isclose(images.mean((1, 2, 3)), changed.mean((1, 2, 3)), atol=1e-6)
    ratio = (changed / images).flatten(1)
    scaled = torch.isclose(ratio.amin(1), ratio.amax(1), atol=1e-5)
    assert (kept_saturation | kept_mean | scaled).all()
    assert kept_saturation.any()
    assert (kept_mean & ~kept_saturation).any()
    assert scaled.any()
    assert (changed - images).abs().max() <= 0.2 * images.max() + 1e-6


def test_map_equals_the_papers_up_to_a_constant() -> None:
    """Both maps scaled to 0 and 0.1 at the held-out quantiles, then averaged (section 3.4)."""
    model, held_out = small(), cookies(4, SIZE)
    model.prepare("student", held_out, 0)
    model.conclude(held_out, held_out)
    new = to_batch(cookies(6, SIZE)[4:])
    with torch.no_grad():
        known, maps = model.maps(to_batch(held_out)).double().numpy(), model.maps(new).double().numpy()
        found = model.raw_map(model.residuals(new))
    expected = np.zeros_like(maps[:, 0])
    for part in range(2):
        low, high = np.quantile(known[:, part], [0.9, 0.995])
        expected += 0.1 * (maps[:, part] - low) / (high - low) / 2
        expected += 0.1 * low / (high - low) / 2
    padded = np.pad(expected, [(0, 0), (4, 4), (4, 4)], mode="edge")
    # Padded, then upsampled by 4.
    expected_map = F.interpolate(torch.from_numpy(padded)[:, None], SIZE, mode="bilinear")[:, 0]
    torch.testing.assert_close(found.double(), expected_map, rtol=1e-4, atol=0)


def test_teacher_from_a_file_is_not_trained(tmp_path: Path) -> None:
    torch.manual_seed(5)
    teacher = patch_descriptor("small", 4, 24)
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    config = small(teacher_weights=str(tmp_path / "teacher.safetensors")).config
    assert [plan.stage for plan in EfficientAD(config).plan("paper")] == ["student"]
    assert [plan.stage for plan in small().plan("paper")] == ["teacher", "student"]
    model = train(put_cookies(tmp_path / "images", 4), tmp_path / "run", method=config, epochs=1, device="cpu")
    stored = model.stored.detector.state_dict()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(stored[f"teacher.{name}"], tensor)


def test_targets_are_the_standardized_features_of_the_backbone() -> None:
    """Features of the enlarged image, at a quarter of its side minus the border; mean 0 and deviation 1."""
    model, pixels = small(teacher="backbone"), cookies(4, SIZE)
    assert [plan.stage for plan in model.plan("default")] == ["student"]
    model.prepare("student", pixels, 0)
    with torch.no_grad():
        target, predicted = model._targets_and_predictions(to_batch(pixels))
        features = model._source_features(model._source(), to_batch(pixels))
    assert target.shape == (4, 24, 4, 8)
    assert predicted.shape == (4, 48, 4, 8)
    values = features.double().numpy()
    centred = (values - values.mean((0, 2, 3), keepdims=True)) / values.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(target.numpy(), centred, rtol=0, atol=1e-3)
    model.loss(to_batch(pixels)).backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is None for tensor in model.teacher.parameters())
    assert all(tensor.grad is not None for tensor in model.student.parameters())


def test_features_are_pooled_to_the_number_of_channels() -> None:
    """The 24 channels of tap s4 are averaged in pairs to 12."""
    images = to_batch(cookies(1, SIZE))
    full, half = small(), small(channels=12)
    with torch.no_grad():
        features, pooled = full._source_features(full._source(), images), half._source_features(half._source(), images)
    assert features.shape == (1, 24, 4, 8)
    torch.testing.assert_close(pooled, features.reshape(1, 12, 2, 4, 8).mean(2))


@pytest.mark.parametrize(
    "changes", [{"image_size": (50, 64)}, {"image_size": (44, 64)}, {"width": 0}, {"teacher_weights": "file"}]
)
def test_invalid_settings_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        EfficientADConfig(**changes)  # type: ignore[arg-type]
