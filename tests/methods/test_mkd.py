from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metalad.methods.mkd import MKD, MKDConfig, _GuidedReLU
from metalad.nn.backbones import Backbone
from metalad.nn.networks import IMAGENET_DEVIATION, IMAGENET_MEAN
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

SIZE = (32, 48)


def small(**changes: object) -> MKD:
    torch.manual_seed(0)
    model = MKD(MKDConfig(image_size=SIZE, smoothing_sigma=1.0, **changes))  # type: ignore[arg-type]
    model.prepare("train", cookies(6, SIZE), 0)
    model.loss(to_batch(cookies(4, SIZE)))  # updates the running statistics of batch norm
    return model.eval()


def test_parameter_counts_match_the_paper() -> None:
    """VGG-16 14.71M, cloner 0.344M, total 15.06M."""
    model = MKD(MKDConfig(backbone="vgg16", standardised=False))
    assert sum(tensor.numel() for tensor in model.source.parameters()) == 14_714_688
    assert sum(tensor.numel() for tensor in model.cloner.parameters()) == 343_984
    widths = [[layer.out_channels for layer in stage.children()] for stage in model.cloner.stages]
    assert widths == [[16, 16], [16, 128], [16, 16, 256], [16, 16, 512], [16, 16, 512]]


@pytest.mark.parametrize(("backbone", "standardised"), [("lite0", True), ("vgg16", False), ("resnet18", False)])
@pytest.mark.parametrize("size", [(64, 96), (50, 77)])
def test_source_and_cloner_return_maps_of_equal_shape(backbone: str, standardised: bool, size: tuple[int, int]) -> None:
    model = MKD(MKDConfig(image_size=size, backbone=backbone, standardised=standardised))
    images = torch.zeros(1, 3, *size)
    shapes = [maps.shape for maps in model.source(images)]
    assert shapes == [maps.shape for maps in model.cloner(images)]
    for shape, stride in zip(shapes, (4, 8, 16, 32), strict=True):
        assert abs(shape[2] - size[0] / stride) < 1


def test_critical_layers_of_vgg_are_the_outputs_of_pooling(tmp_path: Path) -> None:
    """The reference applies single layers; torchvision's indices are 9, 16, 23 and 30."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    inputs = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [torch.nn.Conv2d(inputs, width, 3, 1, 1), torch.nn.ReLU()] if width else [torch.nn.MaxPool2d(2)]
        inputs = width or inputs
    vgg = torch.nn.Sequential(*layers)
    save_file({f"features.{name}": tensor for name, tensor in vgg.state_dict().items()}, tmp_path / "vgg16.safetensors")
    model = MKD(MKDConfig(backbone="vgg16", weights=str(tmp_path / "vgg16.safetensors"), standardised=False))
    model.prepare("train", cookies(1, SIZE), 0)
    images = to_batch(cookies(1, SIZE))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    with torch.no_grad():
        maps, expected = (images - mean) / deviation, []
        for index, layer in enumerate(vgg):
            maps = layer(maps)
            if index in (9, 16, 23, 30):
                expected.append(maps)
        for actual, target in zip(model.source(images), expected, strict=True):
            torch.testing.assert_close(actual, target)


def test_difference_is_cosine_distance_plus_squared_difference() -> None:
    model = small(length_weight=0.3)
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        differences = model.differences(images)
        for layer, (standardize, features, predicted) in enumerate(
            zip(model.units, model.source(images), model.cloner(images), strict=True)
        ):
            target = standardize(features).double().flatten(1)
            cloned = predicted.double().flatten(1)
            cosine = (target * cloned).sum(1) / target.norm(dim=1) / cloned.norm(dim=1)
            expected = 1 - cosine + 0.3 * (target - cloned).square().mean(1)
            torch.testing.assert_close(differences[:, layer].double(), expected, rtol=1e-5, atol=0)


def test_map_is_the_gradient_of_the_score() -> None:
    """The reference is the change of the score over a small step along the gradient."""
    model = small(gradient="plain")
    images = to_batch(cookies(2, SIZE))
    with torch.inference_mode():
        gradient, scores = model.gradients(images)
    step = 1e-5 * gradient / gradient.square().mean().sqrt()
    with torch.no_grad():
        change = model.score(images + step) - model.score(images - step)
    torch.testing.assert_close(change, 2 * (gradient * step).sum((1, 2, 3)), rtol=0.05, atol=0)
    assert (scores > 0).all()


def test_own_score_is_the_difference_of_the_last_three_layers() -> None:
    model = small()
    images = to_batch(cookies(2, SIZE))
    with torch.inference_mode():
        score = model.residuals(images).score
        torch.testing.assert_close(score, model.differences(images)[:, 1:].sum(1))


def test_guided_gradients_differ_and_the_forward_pass_is_equal() -> None:
    model = small()
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        assert torch.equal(model.differences(images), model.differences(images, guided=True))
    guided, plain = model.gradients(images)[0], small(gradient="plain").gradients(images)[0]
    assert (plain - guided).abs().max() > 1e-3 * plain.abs().max()


def test_guided_relu_passes_only_positive_gradients() -> None:
    maps = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(_GuidedReLU.apply(maps), maps, torch.tensor([1.0, -1.0, 1.0]))  # type: ignore[no-untyped-call]
    assert gradient.tolist() == [0.0, 0.0, 1.0]


def test_only_the_cloner_is_trained() -> None:
    model = small()
    trained = {id(tensor) for tensor in model.objectives()[0].parameters}
    assert trained == {id(tensor) for tensor in model.cloner.parameters()}
    assert isinstance(model.source.backbone, Backbone)


@pytest.mark.parametrize("changes", [{"length_weight": -1.0}, {"image_size": (31, 64)}, {"standardised": False}])
def test_invalid_settings_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        MKDConfig(**changes)  # type: ignore[arg-type]


def test_vgg_without_weights_raises() -> None:
    with pytest.raises(ConfigError, match="weights=PATH"):
        MKD(MKDConfig(backbone="vgg16", standardised=False)).prepare("train", cookies(1), 0)
