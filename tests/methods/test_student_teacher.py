from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metalad.detectors.base import Protocol
from metalad.methods.student_teacher import (
    Answers,
    BackboneSchool,
    PatchSchool,
    Pyramid,
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
    """Untrained, but with the units of what a backbone says."""
    torch.manual_seed(0)
    model = StudentTeacher(config(**changes)).eval()
    if isinstance(model.ensemble, BackboneSchool):
        model.prepare("students", cookies(3, SIZE), 0)
    return model


def test_a_pyramid_has_the_backbones_places() -> None:
    """Of any size, with sides that no stride divides, at the taps asked for alone."""
    backbone = Backbone("lite0", ("s8", "s32"))
    backbone.load()
    for size in ((64, 96), (67, 90), (65, 33)):
        image = torch.rand(2, 3, *size)
        said = Pyramid(4, {"s8": 5, "s32": 7})(image)
        assert list(said) == ["s8", "s32"]
        assert [maps.shape[1] for maps in said.values()] == [5, 7]
        assert [maps.shape[-2:] for maps in said.values()] == [maps.shape[-2:] for maps in backbone(image)]


@pytest.mark.parametrize("size", [(64, 96), (70, 51)])
def test_maps_fit_the_image_and_lie_where_the_student_is_wrong(size: tuple[int, int]) -> None:
    """An error planted at one place of a tap is found at the pixels around it, and nowhere far."""
    model = small(image_size=size, taps=("s8",))
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        ((wanted, said, stride),) = model.ensemble.answers(images)
        assert stride == 8
        planted = wanted.clone()
        planted[0, :, 3, 2] += 100
        answers = Answers(wanted, planted.expand_as(said), stride)
        model.ensemble.answers = lambda images: iter([answers])  # type: ignore[method-assign]  # noqa: ARG005
        error = model.errors(images)[0, 0, 0]
    assert error.shape == size
    assert error[24:32, 16:24].min() > 0.2 * error.max()
    error[24 - 8 : 32 + 8, 16 - 8 : 24 + 8] = 0
    assert error.max() < 1e-6


def test_places_that_a_backbone_rounds_away_are_filled_up() -> None:
    """VGG's poolings leave out an odd row or column; a pyramid rounds up."""
    torch.manual_seed(0)
    model = StudentTeacher(config(backbone="vgg16", taps=("s4", "s8"), image_size=(38, 51))).eval()
    for tensor in model.ensemble.get_submodule("teacher").parameters():
        tensor.normal_(0, 0.05)
    images = torch.rand(1, 3, 38, 51)
    with torch.no_grad():
        answers = list(model.ensemble.answers(images))
        assert [wanted.shape[-2:] for wanted, _, _ in answers] == [(9, 12), (4, 6)]
        assert [said.shape[-2:] for _, said, _ in answers] == [(9, 12), (4, 6)]
        error = model.errors(images)[0, 0, 0]
    assert error.shape == (38, 51)
    assert torch.equal(error[-2:, 48:], error[35, 47].expand(2, 3))


def test_the_backbone_is_frozen_and_kept_with_the_model() -> None:
    model = small(**OF_BACKBONE)
    reference = Backbone("lite0", ("s4", "s8"))
    reference.load()
    stored = model.state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(stored[f"school.teacher.{name}"], tensor)
    learner = model.learner("students")
    learner.train()
    model.loss(to_batch(cookies(2, SIZE))).backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is None for tensor in model.ensemble.get_submodule("teacher").parameters())
    assert all(tensor.grad is not None for tensor in model.ensemble.students.parameters())
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[f"school.teacher.{name}"], tensor)


def test_the_targets_are_the_backbones_taps_standardised() -> None:
    """Over the images that the units were learnt from, mean 0 and deviation 1 in each channel."""
    model = small(**OF_BACKBONE)
    with torch.no_grad():
        answers = list(model.ensemble.answers(to_batch(cookies(3, SIZE))))
    assert [(wanted.shape[1], stride) for wanted, _, stride in answers] == [(24, 4), (40, 8)]
    for wanted, _, _ in answers:
        values = wanted.double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)).double(), rtol=0, atol=1e-3)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values)).double(), rtol=1e-3, atol=0)


def test_the_papers_networks_have_26_million_parameters() -> None:
    """Three scales of a teacher and three students, each with a decoder to ResNet-18's 512 numbers."""
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
def test_error_and_spread_are_those_of_a_mixture(changes: dict[str, object]) -> None:
    """Eq. 8 and 9, written out in NumPy, at the places that the map is made of."""
    model = small(**changes | {"dense": True})
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        found = model.errors(images)
        answers = list(model.ensemble.answers(images))
    assert found.shape == (2, len(answers), 2, *SIZE)
    for index, (wanted, said, stride) in enumerate(answers):
        known, each = wanted.double().numpy(), said.double().numpy()
        mean = each.mean(0)
        error, spread = np.square(mean - known).sum(1), np.square(each).sum(2).mean(0) - np.square(mean).sum(1)
        for part, expected in enumerate((error, spread)):
            fine = torch.from_numpy(expected)[:, None]
            if stride > 1:
                fine = nn.functional.interpolate(fine, SIZE, mode="bilinear")
            torch.testing.assert_close(found[:, index, part].double(), fine[:, 0], rtol=1e-3, atol=1e-5)


def test_students_that_know_the_teacher_find_nothing() -> None:
    model = small(**DISTILLED)
    assert isinstance(model.ensemble, PatchSchool)
    for teacher, students in zip(model.ensemble.teachers, model.ensemble.students, strict=True):
        for student in students.children():
            student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        assert float(model.residuals(to_batch(cookies(1, SIZE))).values.max()) < 1e-6


@each_teacher
def test_the_map_is_the_papers_but_for_a_constant(changes: dict[str, object]) -> None:
    """Eq. 10 and 11, with means and deviations over the held-out images."""
    model, held_out = small(**changes), cookies(3, SIZE)
    model.conclude(held_out, held_out)
    new = to_batch(cookies(5, SIZE)[3:])
    with torch.no_grad():
        found = model.raw_map(model.residuals(new)).double().numpy()
        known, maps = model.errors(to_batch(held_out)).double().numpy(), model.errors(new).double().numpy()
    expected = np.zeros_like(found)
    for scale in range(2):
        for part in range(2):
            values = known[:, scale, part]
            expected += (maps[:, scale, part] - values.mean()) / values.std(ddof=1) / 2
    np.testing.assert_allclose(found - found.min(), expected - expected.min(), rtol=0, atol=1e-4 * float(found.max()))


def test_teacher_and_students_learn_in_turn() -> None:
    model = small(**DISTILLED)
    teacher, students = (
        {id(tensor) for tensor in model.learner(stage).objectives()[0].parameters} for stage in ("teacher", "students")
    )
    assert not teacher & students
    assert teacher | students == {id(tensor) for tensor in model.parameters()}


def test_only_a_distilled_teacher_is_taught() -> None:
    protocols: tuple[Protocol, ...] = ("default", "paper")
    for protocol in protocols:
        assert [plan.stage for plan in small(**DISTILLED).plan(protocol)] == ["teacher", "students"]
        assert [plan.stage for plan in small(**OF_BACKBONE).plan(protocol)] == ["students"]


def test_a_distilled_model_comes_back_from_its_file(tmp_path: Path) -> None:
    wanted = config(**DISTILLED, patches=9, students=2)
    model = train(put_cookies(tmp_path / "images", 5), tmp_path / "run", method=wanted, epochs=1, device="cpu")
    assert list(model.header.training["stages"]) == ["teacher", "students"]
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        assert torch.equal(model.detector(images)[1], read_model(model.path).detector(images)[1])


def test_the_teachers_loss_falls_to_knowledge() -> None:
    """A decoder of the wanted mean has a knowledge loss of 1: targets are standardised."""
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
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        StudentTeacher(StudentTeacherConfig(**{"smoothing_sigma": 1.0, **changes}))  # type: ignore[arg-type]
