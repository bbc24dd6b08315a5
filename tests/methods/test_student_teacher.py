import numpy as np
import pytest
import torch
from torch import nn

from metalad.detector import to_batch
from metalad.errors import ConfigError
from metalad.methods.student_teacher import (
    NETWORKS,
    PatchNetwork,
    StudentTeacher,
    StudentTeacherConfig,
    compactness,
)
from tests.cookies import cookies

SIZE = (48, 64)
FIELDS = {17: (17, 1), 33: (32, 4), 65: (60, 8)}
"""Of each side of a patch, the pixels that count, and the stride: poolings round the last rows away."""


def network(side: int) -> PatchNetwork:
    torch.manual_seed(side)
    return PatchNetwork(side, 6, 5).double()


def small(**changes: object) -> StudentTeacher:
    values = {"image_size": SIZE, "smoothing_sigma": 1.0, "width": 4, "descriptor": 6, "tap": "s4"} | changes
    torch.manual_seed(0)
    model = StudentTeacher(StudentTeacherConfig(**values))  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("side", NETWORKS)
def test_dense_is_patch_by_patch(side: int) -> None:
    """Each descriptor of the dense network is what the network says of that patch alone."""
    net = network(side)
    images = torch.rand(2, 3, side + 9, side + 12, dtype=torch.double)
    dense = net(images, dense=True)
    assert (net.field, net.stride) == FIELDS[side]
    assert dense.shape[2:] == (side + 10 - net.field, side + 13 - net.field)
    for row in range(10):
        for column in range(0, 13, 3):
            patch = images[..., row : row + side, column : column + side]
            alone = net(patch)
            assert alone.shape == (2, 5, 1, 1)
            torch.testing.assert_close(dense[..., row, column], alone[..., 0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", NETWORKS)
def test_strided_is_every_strideth_of_dense(side: int) -> None:
    net, images = network(side), torch.rand(1, 3, 95, 101, dtype=torch.double)
    strided = net(images)
    dense = net(images, dense=True)[..., :: net.stride, :: net.stride]
    torch.testing.assert_close(strided, dense[..., : strided.shape[2], : strided.shape[3]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("side", NETWORKS)
def test_a_descriptor_is_of_the_patch_around_its_place(side: int, dense: bool) -> None:
    """The gradient of one descriptor to the image lies around its place, as far as the field reaches."""
    net = network(side)
    images = torch.rand(1, 3, 90, 102, dtype=torch.double, requires_grad=True)
    found = net.around(images, dense=dense)
    stride = 1 if dense else net.stride
    assert found.shape[2:] == (-(-90 // stride), -(-102 // stride))
    place = 45 // stride, 51 // stride
    (gradient,) = torch.autograd.grad(found[0, :, place[0], place[1]].square().sum(), images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    for touched, at in ((rows, place[0]), (columns, place[1])):
        centre = (at + 0.5) * stride - 0.5
        assert abs(float(touched[0] + touched[-1]) / 2 - centre) <= net.stride / 2
        assert net.field - net.stride < touched[-1] - touched[0] + 1 <= net.field


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


def test_error_and_spread_are_those_of_a_mixture() -> None:
    """Eq. 8 and 9, written out in NumPy."""
    model = small(dense=True, students=3)
    (scale,) = model.scales()
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        wanted, said = (part.double().numpy() for part in scale.answers(images, dense=True))
        maps = scale.errors(images, dense=True).double().numpy()
    mean = said.mean(0)
    spread = np.square(said).sum(2).mean(0) - np.square(mean).sum(1)
    np.testing.assert_allclose(maps[:, 0], np.square(mean - wanted).sum(1), rtol=1e-4)
    np.testing.assert_allclose(maps[:, 1], spread, rtol=1e-3, atol=1e-6)


def test_students_that_know_the_teacher_find_nothing() -> None:
    model = small(scales=(17, 33))
    for scale in model.scales():
        for student in scale.students:
            student.load_state_dict(scale.teacher.state_dict())
    with torch.no_grad():
        assert float(model.evidence(to_batch(cookies(1, SIZE))).residual.max()) < 1e-6


def test_the_map_is_the_papers_but_for_a_constant() -> None:
    """Eq. 10 and 11, with means and deviations over the held-out images."""
    model, held_out = small(scales=(17, 33)), cookies(3, SIZE)
    model.conclude(held_out, held_out)
    new = to_batch(cookies(5, SIZE)[3:])
    with torch.no_grad():
        found = model.raw_map(model.evidence(new)).double().numpy()
        expected = np.zeros_like(found)
        for scale in model.scales():
            known = scale.errors(to_batch(held_out), dense=False).double().numpy()
            maps = scale.errors(new, dense=False).double().numpy()
            for part in range(2):
                expected += (maps[:, part] - known[:, part].mean()) / known[:, part].std(ddof=1) / 2
    np.testing.assert_allclose(found - found.min(), expected - expected.min(), rtol=0, atol=1e-4 * float(found.max()))


def test_teacher_and_students_learn_in_turn() -> None:
    model = small(scales=(17, 33))
    teacher, students = (
        {id(tensor) for tensor in model.learner(stage).objectives()[0].parameters} for stage in ("teacher", "students")
    )
    assert not teacher & students
    assert teacher | students == {id(tensor) for tensor in model.parameters()}


def test_the_teachers_loss_falls_to_knowledge() -> None:
    """A decoder of the wanted mean has a knowledge loss of 1: targets are standardised."""
    model = small()
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
    "changes", [{"scales": (15,)}, {"scales": (17, 17)}, {"scales": ()}, {"students": 0}, {"image_size": (16, 64)}]
)
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        StudentTeacherConfig(**{"smoothing_sigma": 1.0, **changes})  # type: ignore[arg-type]
