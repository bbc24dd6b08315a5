import dataclasses
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from scipy.ndimage import zoom

from metalad.detectors.distillation import CachedFeatures, PartLearner
from metalad.methods.rd4ad import RD4AD, RD4ADConfig, Scale, UpsamplingBlock
from metalad.nn.backbones import Backbone
from metalad.nn.networks import Tap
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from metalad.training.loop import Descent
from tests.cookies import cookies

SIZE = (64, 80)


def small(**changes: object) -> RD4AD:
    torch.manual_seed(0)
    model = RD4AD(RD4ADConfig(image_size=SIZE, **changes))  # type: ignore[arg-type]
    model.prepare("train", cookies(6, SIZE), 0)
    model.loss(to_batch(cookies(4, SIZE)))  # updates the running statistics of batch norm
    return model.eval()


def parameters(module: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())


def test_published_networks_have_the_shapes_of_the_paper() -> None:
    """Wide ResNet-50: the embedding has 2,048 channels at stride 32; the decoder mirrors layers 3 to 1."""
    model = RD4AD(
        RD4ADConfig(
            image_size=(128, 128),
            backbone="wide_resnet50_2",
            standardized=False,
            block="bottleneck",
            blocks=(3, 3, 4, 6),
        )
    ).eval()
    maps = [torch.rand(1, channels, side, side) for channels, side in ((256, 32), (512, 16), (1024, 8))]
    with torch.no_grad():
        embedded = model.embedding(maps)
        reconstructed = model.student(embedded, maps)
    assert embedded.shape == (1, 2048, 4, 4)
    assert [each.shape for each in reconstructed] == [each.shape for each in maps]
    assert all((each >= 0).all() for each in reconstructed)  # as the teacher's, after a ReLU
    first = model.embedding.blocks[0]
    assert [first.get_parameter(f"conv{index}.weight").shape for index in (1, 2, 3)] == [
        (1024, 3072, 1, 1),
        (1024, 1024, 3, 3),
        (2048, 1024, 1, 1),
    ]
    assert [len(cast(torch.nn.Sequential, stage)) for stage in model.student.stages] == [3, 4, 6]
    convolutions = [layer for layer in model.embedding.fusions.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [tuple(layer.weight.shape[:2]) for layer in convolutions] == [(512, 256), (1024, 512), (1024, 512)]
    assert {(layer.kernel_size, layer.stride) for layer in convolutions} == {((3, 3), (2, 2))}


@pytest.mark.parametrize(
    ("backbone", "taps"),
    [("lite0", ("s4", "s8", "s16")), ("resnet18", ("s8", "s32")), ("vgg16", ("s4", "s16")), ("lite0", ("s8",))],
)
@pytest.mark.parametrize("size", [(128, 160), (137, 150)])
def test_teacher_and_student_return_maps_of_equal_shape(
    backbone: str, taps: tuple[Tap, ...], size: tuple[int, int]
) -> None:
    model = RD4AD(RD4ADConfig(image_size=size, backbone=backbone, taps=taps))
    with torch.no_grad():
        targets = [torch.randn_like(maps) for maps in model.teacher(torch.zeros(2, 3, *size))]
        reconstructed = model.student(model.embedding(targets), targets)
    assert [maps.shape for maps in reconstructed] == [maps.shape for maps in targets]


def test_scales_are_ordered_from_the_finest() -> None:
    one, other = (small(taps=taps) for taps in (("s4", "s8", "s16"), ("s16", "s4", "s8")))
    assert other.teacher.taps == ("s4", "s8", "s16")
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        assert torch.equal(one.residuals(images).values, other.residuals(images).values)


def test_loss_is_the_sum_of_cosine_distances_of_flattened_maps() -> None:
    model = small()
    images = to_batch(cookies(3, SIZE))
    with torch.no_grad():
        targets = [standardize(maps) for standardize, maps in zip(model.targets, model.teacher(images), strict=True)]
        expected = 0.0
        for target, reconstructed in zip(targets, model.student(model.embedding(targets), targets), strict=True):
            one, other = target.double().flatten(1), reconstructed.double().flatten(1)
            expected += float((1 - (one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)).mean())
        assert float(model.loss(images)) == pytest.approx(expected, rel=1e-5)


def test_raw_map_is_the_sum_of_upsampled_cosine_distances() -> None:
    """The reference interpolates with scipy."""
    model = small()
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        distances = model.distances(images)
        raw = model.raw_map(model.residuals(images))
    assert [each.shape for each in distances] == [(2, 16, 20), (2, 8, 10), (2, 4, 5)]
    expected = sum(
        zoom(each[0].numpy(), SIZE[0] / each.shape[1], order=1, grid_mode=True, mode="nearest") for each in distances
    )
    torch.testing.assert_close(raw[0], torch.from_numpy(expected), rtol=0, atol=1e-4)


def test_distance_is_0_for_a_perfect_student_and_2_for_the_opposite(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    images = to_batch(cookies(2, SIZE))
    for factor, expected in ((3.0, 0.0), (-0.5, 2.0)):

        def scaled(targets: Sequence[torch.Tensor], factor: float = factor) -> list[torch.Tensor]:
            return [factor * target for target in targets]

        monkeypatch.setattr(model, "_reconstructed", scaled)
        with torch.no_grad():
            for each in model.distances(images):
                torch.testing.assert_close(each, torch.full_like(each, expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_an_upsampling_block_multiplies_the_sides(factor: int, bottleneck: bool) -> None:
    block = UpsamplingBlock(6, 4, factor, bottleneck=bottleneck)
    assert block(torch.randn(2, 6, 3, 5)).shape == (2, 4, 3 * factor, 5 * factor)


def test_scales_of_equal_size_have_the_factor_1() -> None:
    """Feature maps of a plain vision transformer have one size."""
    one, other = (Scale(torch.zeros(1, channels, 7, 9)) for channels in (3, 5))
    assert one.times(other) == 1


def test_only_embedding_and_student_are_trained() -> None:
    model = small()
    learner = model.learner("train")
    assert isinstance(learner, PartLearner)
    trained = {id(tensor) for tensor in learner.objectives()[0].parameters}
    assert trained == {id(tensor) for part in (model.embedding, model.student) for tensor in part.parameters()}
    assert isinstance(model.teacher, Backbone)


def test_training_computes_the_teachers_maps_once_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    calls = []
    original = model.teacher.forward

    def counting(images: torch.Tensor) -> list[torch.Tensor]:
        calls.append(len(images))
        return original(images)

    monkeypatch.setattr(model.teacher, "forward", counting)
    monkeypatch.setattr(model, "prepare", lambda *_: None)
    plan = dataclasses.replace(model.plan("default")[0], max_epochs=3, steps=None, batch_size=2)
    pixels = cookies(6, SIZE)
    Descent(model, plan, seed=0, precision="fp32", folder=None).run(pixels[:4], pixels[4:])
    assert calls == [1] * 6


def test_cached_features_are_those_of_the_network_also_beyond_the_limit() -> None:
    backbone = small().teacher
    images = to_batch(cookies(3, SIZE))
    with torch.no_grad():
        expected = [torch.cat(maps) for maps in zip(*(backbone(image[None]) for image in images), strict=True)]
    one_image = sum(maps[0].nbytes for maps in expected)
    for limit, stored in ((2**30, 3), (one_image, 1), (0, 0)):
        cached = CachedFeatures(backbone, limit)
        for _ in range(2):
            for actual, maps in zip(cached(images), expected, strict=True):
                assert torch.equal(actual, maps)
        assert cached.bytes == stored * one_image


def test_published_plan() -> None:
    (plan,) = small().plan("paper")
    assert (plan.learning_rate, plan.betas, plan.batch_size, plan.max_epochs) == (0.005, (0.5, 0.999), 16, 200)
    assert (plan.schedule, plan.keep) == ("constant", "last")


@pytest.mark.parametrize("blocks", [(), (0,), (1, 1), (1, 1, 1, 0)])
def test_invalid_blocks_raise(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="blocks"):
        RD4ADConfig(blocks=blocks)


def test_too_small_images_raise() -> None:
    with pytest.raises(ConfigError, match="image_size"):
        RD4AD(RD4ADConfig(image_size=(32, 128)))
