from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metalad.detectors.base import Protocol
from metalad.methods.student_teacher import (
    BackboneEnsemble,
    FeaturesAndPredictions,
    PatchEnsemble,
    PyramidStudent,
    StudentTeacher,
    StudentTeacherConfig,
    compactness,
)
from metalad.nn.backbones import Backbone
from metalad.nn.patch_network import NETWORKS, PatchNetwork
from metalad.nn.pixels import to_batch
from metalad.pipelines.train import train
from metalad.runtime.errors import ConfigError
from metalad.storage.model_file import read_model
from tests.cookies import cookies, put_cookies

SIZE = (48, 64)
OF_BACKBONE: dict[str, object] = {"taps": ("s4", "s8")}
DISTILLED: dict[str, object] = {"teacher": "distilled", "descriptor": 6, "taps": ("s4",), "scales": (17, 33)}
each_teacher = pytest.mark.parametrize("changes", [OF_BACKBONE, DISTILLED], ids=["backbone", "distilled"])


def config(**changes: object) -> StudentTeacherConfig:
    return StudentTeacherConfig(**{"image_size": SIZE, "smoothing_sigma": 1.0, "width": 4} | changes)  # type: ignore[arg-type]


def small(**changes: object) -> StudentTeacher:
    """An untrained model; with a backbone as teacher, the standardization is fitted."""
    torch.manual_seed(0)
    model = StudentTeacher(config(**changes)).eval()
    if isinstance(model.ensemble, BackboneEnsemble):
        model.prepare("students", cookies(3, SIZE), 0)
    return model


def test_student_maps_have_the_size_of_the_backbones_maps() -> None:
    """Only the configured taps; sizes include sides that the strides do not divide."""
    backbone = Backbone("lite0", ("s8", "s32"))
    backbone.load()
    for size in ((64, 96), (67, 90), (65, 33)):
        image = torch.rand(2, 3, *size)
        predicted = PyramidStudent(4, {"s8": 5, "s32": 7})(image)
        assert list(predicted) == ["s8", "s32"]
        assert [maps.shape[1] for maps in predicted.values()] == [5, 7]
        assert [maps.shape[-2:] for maps in predicted.values()] == [maps.shape[-2:] for maps in backbone(image)]


@pytest.mark.parametrize("size", [(64, 96), (70, 51)])
def test_error_map_fits_the_image_and_localizes_an_error(size: tuple[int, int]) -> None:
    """An error at one position of a tap appears at the pixels around it only."""
    model = small(image_size=size, taps=("s8",))
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        ((target, predicted, stride),) = model.ensemble.features_and_predictions(images)
        assert stride == 8
        disturbed = target.clone()
        disturbed[0, :, 3, 2] += 100
        outputs = FeaturesAndPredictions(target, disturbed.expand_as(predicted), stride)
        model.ensemble.features_and_predictions = lambda images: iter([outputs])  # type: ignore[method-assign]  # noqa: ARG005
        error = model.errors(images)[0, 0, 0]
    assert error.shape == size
    assert error[24:32, 16:24].min() > 0.2 * error.max()
    error[24 - 8 : 32 + 8, 16 - 8 : 24 + 8] = 0
    assert error.max() < 1e-6


def test_missing_border_positions_are_padded() -> None:
    """VGG's pooling drops an odd row or column; the student rounds up."""
    torch.manual_seed(0)
    model = StudentTeacher(config(backbone="vgg16", taps=("s4", "s8"), image_size=(38, 51))).eval()
    for tensor in model.ensemble.get_submodule("teacher").parameters():
        tensor.normal_(0, 0.05)
    images = torch.rand(1, 3, 38, 51)
    with torch.no_grad():
        outputs = list(model.ensemble.features_and_predictions(images))
        assert [target.shape[-2:] for target, _, _ in outputs] == [(9, 12), (4, 6)]
        assert [predicted.shape[-2:] for _, predicted, _ in outputs] == [(9, 12), (4, 6)]
        error = model.errors(images)[0, 0, 0]
    assert error.shape == (38, 51)
    assert torch.equal(error[-2:, 48:], error[35, 47].expand(2, 3))


def test_backbone_is_frozen_and_stored_with_the_model() -> None:
    model = small(**OF_BACKBONE)
    reference = Backbone("lite0", ("s4", "s8"))
    reference.load()
    stored = model.state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(stored[f"ensemble.teacher.{name}"], tensor)
    learner = model.learner("students")
    learner.train()
    model.loss(to_batch(cookies(2, SIZE))).backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is None for tensor in model.ensemble.get_submodule("teacher").parameters())
    assert all(tensor.grad is not None for tensor in model.ensemble.students.parameters())
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[f"ensemble.teacher.{name}"], tensor)


def test_targets_are_the_standardized_features_of_the_backbone() -> None:
    """On the images used for fitting, each channel has mean 0 and standard deviation 1."""
    model = small(**OF_BACKBONE)
    with torch.no_grad():
        outputs = list(model.ensemble.features_and_predictions(to_batch(cookies(3, SIZE))))
    assert [(target.shape[1], stride) for target, _, stride in outputs] == [(24, 4), (40, 8)]
    for target, _, _ in outputs:
        values = target.double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)).double(), rtol=0, atol=1e-3)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values)).double(), rtol=1e-3, atol=0)


def test_parameter_count_matches_the_paper() -> None:
    """Three scales, each with a teacher and three students, and decoders to ResNet-18's 512 features."""
    networks = [nn.ModuleList([PatchNetwork(side, 128, 128), nn.Linear(128, 512)]) for side in NETWORKS]
    assert sum(4 * tensor.numel() for tensor in nn.ModuleList(networks).parameters()) == 25_951_744


def test_compactness_is_the_squared_correlation() -> None:
    torch.manual_seed(0)
    descriptors = torch.randn(50, 4) @ torch.randn(4, 4)
    correlation = np.corrcoef(descriptors.double().numpy(), rowvar=False)
    expected = (np.square(correlation).sum() - 4) / 4
    assert float(compactness(descriptors)) == pytest.approx(expected, rel=1e-5)
    assert float(compactness(torch.eye(4).repeat(2, 1)[:, :1])) == pytest.approx(0)


@each_teacher
def test_error_and_variance_match_the_paper(changes: dict[str, object]) -> None:
    """Eq. 8 and 9 in NumPy, at the stride of the scale."""
    model = small(**changes | {"dense": True})
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        errors = model.errors(images)
        outputs = list(model.ensemble.features_and_predictions(images))
    assert errors.shape == (2, len(outputs), 2, *SIZE)
    for index, (target, predicted, stride) in enumerate(outputs):
        features, predictions = target.double().numpy(), predicted.double().numpy()
        mean = predictions.mean(0)
        error, variance = (
            np.square(mean - features).sum(1),
            np.square(predictions).sum(2).mean(0) - np.square(mean).sum(1),
        )
        for part, expected in enumerate((error, variance)):
            upsampled = torch.from_numpy(expected)[:, None]
            if stride > 1:
                upsampled = nn.functional.interpolate(upsampled, SIZE, mode="bilinear")
            torch.testing.assert_close(errors[:, index, part].double(), upsampled[:, 0], rtol=1e-3, atol=1e-5)


def test_students_equal_to_the_teacher_have_residual_zero() -> None:
    model = small(**DISTILLED)
    assert isinstance(model.ensemble, PatchEnsemble)
    for teacher, students in zip(model.ensemble.teachers, model.ensemble.students, strict=True):
        for student in students.children():
            student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        assert float(model.residuals(to_batch(cookies(1, SIZE))).values.max()) < 1e-6


@each_teacher
def test_map_equals_the_papers_up_to_a_constant(changes: dict[str, object]) -> None:
    """Eq. 10 and 11, with means and standard deviations over the held-out images."""
    model, held_out = small(**changes), cookies(3, SIZE)
    model.conclude(held_out, held_out)
    new = to_batch(cookies(5, SIZE)[3:])
    with torch.no_grad():
        anomaly_map = model.raw_map(model.residuals(new)).double().numpy()
        held_out_maps, maps = model.errors(to_batch(held_out)).double().numpy(), model.errors(new).double().numpy()
    expected = np.zeros_like(anomaly_map)
    for scale in range(2):
        for part in range(2):
            values = held_out_maps[:, scale, part]
            expected += (maps[:, scale, part] - values.mean()) / values.std(ddof=1) / 2
    np.testing.assert_allclose(
        anomaly_map - anomaly_map.min(), expected - expected.min(), rtol=0, atol=1e-4 * float(anomaly_map.max())
    )


def test_teacher_and_students_are_trained_in_separate_stages() -> None:
    model = small(**DISTILLED)
    teacher, students = (
        {id(tensor) for tensor in model.learner(stage).objectives()[0].parameters} for stage in ("teacher", "students")
    )
    assert not teacher & students
    assert teacher | students == {id(tensor) for tensor in model.parameters()}


def test_only_a_distilled_teacher_is_trained() -> None:
    protocols: tuple[Protocol, ...] = ("default", "paper")
    for protocol in protocols:
        assert [plan.stage for plan in small(**DISTILLED).plan(protocol)] == ["teacher", "students"]
        assert [plan.stage for plan in small(**OF_BACKBONE).plan(protocol)] == ["students"]


def test_distilled_model_is_restored_from_its_file(tmp_path: Path) -> None:
    settings = config(**DISTILLED, patches=9, students=2)
    model = train(put_cookies(tmp_path / "images", 5), tmp_path / "run", method=settings, epochs=1, device="cpu")
    assert list(model.header.training["stages"]) == ["teacher", "students"]
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        trained, restored = model.stored.detector, read_model(tmp_path / "run").detector
        assert torch.equal(trained(images).anomaly_map, restored(images).anomaly_map)


def test_training_lowers_the_teacher_loss() -> None:
    """Predicting the mean gives a knowledge loss of 1, since targets are standardized."""
    model = small(**DISTILLED | {"scales": (17,)})
    pixels = cookies(8, SIZE)
    model.prepare("teacher", pixels, 0)
    learner = model.learner("teacher")
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = learner.loss(to_batch(pixels))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.parametrize(
    "changes",
    [
        {"scales": (15,)},
        {"scales": (17, 17)},
        {"scales": ()},
        {"students": 0},
        {"image_size": (16, 64), "teacher": "distilled"},
        {"image_size": (31, 64)},
        {"taps": ("s8", "s8")},
    ],
)
def test_invalid_settings_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        StudentTeacher(StudentTeacherConfig(**{"smoothing_sigma": 1.0, **changes}))  # type: ignore[arg-type]
