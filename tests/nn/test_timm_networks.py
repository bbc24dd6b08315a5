"""Networks of timm: with a stub of timm's interface, and with timm itself if it is installed."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from metalad.nn.backbones import Backbone
from metalad.nn.network import TAPS as ALL_TAPS
from metalad.nn.network import Tap
from metalad.runtime.errors import ConfigError


class Pyramid(nn.Module):
    """A network with timm's interface for intermediate maps: three stages, the last two with stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = [{"reduction": 4, "num_chs": 5}, {"reduction": 8}, {"reduction": 8}]
        self.stages = nn.ModuleList([nn.Conv2d(3, 5, 4, 4), nn.Conv2d(5, 6, 2, 2), nn.Conv2d(6, 7, 1)])

    def forward_intermediates(
        self, images: Tensor, *, indices: Sequence[int], intermediates_only: bool, stop_early: bool
    ) -> list[Tensor]:
        assert intermediates_only
        assert stop_early
        maps = []
        for stage in self.stages:
            images = F.relu(stage(images))
            maps.append(images)
        return [maps[index] for index in indices]


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.patch_size = nn.Conv2d(3, 6, 8, 8), (8, 8)


class Tokens(nn.Module):
    """A network with timm's interface of a vision transformer: patches of 8×8 pixels and four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Patches()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def prune_intermediate_layers(self, indices: Sequence[int], *, prune_norm: bool, prune_head: bool) -> None:
        assert prune_norm
        assert prune_head
        self.blocks = self.blocks[: max(indices) + 1]

    def forward_intermediates(
        self, images: Tensor, *, indices: Sequence[int], intermediates_only: bool, stop_early: bool
    ) -> list[Tensor]:
        assert intermediates_only
        assert stop_early
        assert all(side % 8 == 0 for side in images.shape[-2:])
        tokens, maps = self.patch_embed.proj(images).permute(0, 2, 3, 1), []
        for block in self.blocks:
            tokens = F.relu(block(tokens))
            maps.append(tokens.permute(0, 3, 1, 2))
        return [maps[index] for index in indices]


def checkpoint_filter_fn(stored: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert the names of the publisher of `Tokens`, as a function of this name does in a module of timm."""
    assert isinstance(model, Tokens)
    return {name.removeprefix("published."): tensor for name, tensor in stored.items()}


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, pretrained: bool, num_classes: int, dynamic_img_size: bool = False) -> nn.Module:
        assert (pretrained, num_classes, dynamic_img_size) == (False, 0, name == "tokens")
        return Tokens() if name == "tokens" else Pyramid()

    def tokens() -> Tokens:
        return Tokens()

    tokens.__module__ = "timm.models.vision_transformer"

    stub = ModuleType("timm")
    stub.__dict__.update(
        create_model=create_model,
        is_model=lambda name: name in ("pyramid", "tokens"),
        model_entrypoint=lambda name: tokens if name == "tokens" else create_model,
        list_models=lambda: ["pyramid", "tokens"],
        get_pretrained_cfg=lambda _: SimpleNamespace(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25)),
    )
    monkeypatch.setitem(sys.modules, "timm", stub)


@pytest.mark.usefixtures("timm")
def test_timm_network_returns_the_last_map_of_each_stride(tmp_path: Path) -> None:
    trained = Pyramid()
    save_file({**trained.state_dict(), "head.weight": torch.rand(2, 7)}, tmp_path / "pyramid.safetensors")
    backbone = Backbone("pyramid", ("s8", "s4"))
    with pytest.raises(ConfigError, match="weights=PATH"):
        backbone.load()
    backbone.load(str(tmp_path / "pyramid.safetensors"))
    images = torch.rand(2, 3, 32, 24)
    with torch.no_grad():
        deep, fine = backbone(images)
        standardized = (images - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.5, 0.25])[
            :, None, None
        ]
        expected = trained.forward_intermediates(standardized, indices=[0, 2], intermediates_only=True, stop_early=True)
    torch.testing.assert_close([fine, deep], expected)


@pytest.mark.usefixtures("timm")
def test_transformer_returns_the_tokens_of_each_quarter_on_the_grid_of_each_stride(tmp_path: Path) -> None:
    """Sides that are not multiples of the patch: 20×42 pixels are enlarged to 24×48, which are 3×6 patches."""
    trained = Tokens()
    stored = {f"published.{name}": tensor for name, tensor in trained.state_dict().items()}
    save_file(stored, tmp_path / "tokens.safetensors")
    backbone = Backbone("tokens", ("s16", "s4", "s8"))
    assert len(backbone.network.get_submodule("model.blocks")) == 3  # type: ignore[arg-type]
    backbone.load(str(tmp_path / "tokens.safetensors"))
    images = torch.rand(2, 3, 20, 42)
    with torch.no_grad():
        coarse, fine, middle = backbone(images)
        enlarged = F.interpolate(backbone.network.normalised(images), (24, 48), mode="bilinear")
        tokens = trained.forward_intermediates(enlarged, indices=(0, 1, 2), intermediates_only=True, stop_early=True)
    torch.testing.assert_close(middle, tokens[1])
    torch.testing.assert_close(fine, F.interpolate(tokens[0], (5, 11), mode="bilinear"))
    torch.testing.assert_close(coarse, F.adaptive_avg_pool2d(tokens[2], (2, 3)))


@pytest.mark.usefixtures("timm")
def test_transformer_with_another_patch_size_is_refused(tmp_path: Path) -> None:
    stored = {**Tokens().state_dict(), "patch_embed.proj.weight": torch.rand(6, 3, 4, 4)}
    save_file(stored, tmp_path / "tokens.safetensors")
    with pytest.raises(ConfigError, match="not the weights of tokens; 1 of its 10 tensors are missing or have another"):
        Backbone("tokens", ("s32",)).load(str(tmp_path / "tokens.safetensors"))


@pytest.mark.usefixtures("timm")
def test_unknown_timm_taps_and_names_raise_config_error() -> None:
    with pytest.raises(ConfigError, match="pyramid has no tap s16; available: s4, s8"):
        Backbone("pyramid", ("s4", "s16"))
    with pytest.raises(ConfigError, match=r"unknown backbone 'pyramide', in timm too; did you mean pyramid\?"):
        Backbone("pyramide", ("s4",))


def test_unknown_backbone_without_timm_lists_the_available_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ConfigError, match=r"unknown backbone 'resnet34'; available: lite0, .*, and the networks of the"
    ):
        Backbone("resnet34", ("s4",))


@pytest.mark.parametrize(
    ("name", "taps", "channels"),
    [("resnet34", ("s4", "s8", "s16", "s32"), (64, 128, 256, 512)), ("efficientnet_b0", ("s16", "s8"), (112, 40))],
)
def test_networks_of_installed_timm(
    name: str, taps: tuple[Tap, ...], channels: tuple[int, ...], tmp_path: Path
) -> None:
    real = installed_timm()
    save_file(real.create_model(name).state_dict(), tmp_path / "weights.safetensors")
    backbone = Backbone(name, taps)
    backbone.load(str(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        outputs = backbone(torch.rand(1, 3, 64, 96))
    strides = [int(tap[1:]) for tap in taps]
    assert [tuple(maps.shape[1:]) for maps in outputs] == [
        (width, 64 // stride, 96 // stride) for width, stride in zip(channels, strides, strict=True)
    ]
    assert all(maps.isfinite().all() for maps in outputs)


def installed_timm() -> Any:
    return pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)


def transformer(name: str, file: Path) -> nn.Module:
    """Return a transformer of timm with random weights, which are written to a file."""
    torch.manual_seed(0)
    network: nn.Module = installed_timm().create_model(name, num_classes=0, dynamic_img_size=True).eval()
    with torch.no_grad():
        for tensor in network.parameters():  # some are 0 or 1 at first, and would hide an error
            tensor.add_(0.02 * torch.randn_like(tensor))
    save_file(network.state_dict(), file)
    return network


TRANSFORMERS = {
    "test_vit": (2, 3, 5, 6),
    "vit_tiny_patch16_224": (3, 6, 9, 12),
    "vit_small_patch14_reg4_dinov2": (3, 6, 9, 12),
    "vit_small_patch16_dinov3": (3, 6, 9, 12),
    "vit_base_patch32_clip_224": (3, 6, 9, 12),
    "vit_base_patch16_siglip_224": (3, 6, 9, 12),
    "deit_tiny_patch16_224": (3, 6, 9, 12),
}
"""Number of blocks up to each tap: a quarter of all of them, a half, three quarters, all; rounded up."""


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_maps_of_a_transformer_are_the_patch_tokens_of_its_blocks(name: str, tmp_path: Path) -> None:
    """Block by block, in timm's own forward pass; the sides of the image are multiples of both patch and stride."""
    reference = transformer(name, tmp_path / "weights.safetensors")
    backbone = Backbone(name, ALL_TAPS)
    backbone.load(str(tmp_path / "weights.safetensors"))
    patch = int(reference.get_submodule("patch_embed").patch_size[0])  # type: ignore[index]
    side = math.lcm(patch, 32)
    images, blocks = torch.rand(1, 3, side, 2 * side), []
    for number in TRANSFORMERS[name]:
        block = reference.get_submodule(f"blocks.{number - 1}")
        block.register_forward_hook(lambda *hooked: blocks.append(hooked[2]))
    with torch.no_grad():
        maps = backbone(images)
        reference(backbone.network.normalised(images))
    down, across = side // patch, 2 * side // patch
    for tap, values, tokens in zip(ALL_TAPS, maps, blocks, strict=True):
        expected = tokens[:, -down * across :].transpose(1, 2).unflatten(2, (down, across))
        grid = (side // int(tap[1:]), 2 * side // int(tap[1:]))
        assert values.shape[-2:] == grid
        if grid[0] > down:
            expected = F.interpolate(expected, grid, mode="bilinear")
        else:
            expected = F.adaptive_avg_pool2d(expected, grid)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
        assert values.std() > 0


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("size", [(32, 32), (50, 77), (96, 64)])
def test_transformer_has_the_grid_of_each_stride_for_any_image_size(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    transformer(name, tmp_path / "weights.safetensors")
    backbone = Backbone(name, ("s16", "s4"))
    backbone.load(str(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        for stride, maps in zip((16, 4), backbone(torch.rand(2, 3, *size)), strict=True):
            assert maps.shape[-2:] == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
            assert maps.isfinite().all()


def test_transformer_is_cut_after_its_deepest_tap(tmp_path: Path) -> None:
    transformer("vit_base_patch16_siglip_224", tmp_path / "weights.safetensors")
    backbone = Backbone("vit_base_patch16_siglip_224", ("s4",))
    backbone.load(str(tmp_path / "weights.safetensors"))
    stored = backbone.state_dict()
    assert {name.split(".")[3] for name in stored if ".blocks." in name} == {"0", "1", "2"}
    assert not [name for name in stored if "attn_pool" in name or ".norm." in name]
    assert all(tensor.isfinite().all() for tensor in stored.values())


def test_position_of_a_spot_is_kept_in_the_maps_of_a_transformer(tmp_path: Path) -> None:
    transformer("test_vit", tmp_path / "weights.safetensors")
    backbone = Backbone("test_vit", ("s8",))
    backbone.load(str(tmp_path / "weights.safetensors"))
    images = torch.full((2, 3, 250, 180), 0.5)
    images[1, :, 200:210, 20:30] = 1
    with torch.no_grad():
        (maps,) = backbone(images)
    row, column = divmod(int((maps[1] - maps[0]).abs().sum(0).argmax()), maps.shape[-1])
    assert abs(8 * row + 4 - 205) < 16
    assert abs(8 * column + 4 - 25) < 16


def published(name: str, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the names of the DINOv2 and DINOv3 repositories instead of timm's."""
    if "dinov3" in name:
        renamed = {key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): stored[key] for key in stored}
        renamed["storage_tokens"] = renamed.pop("reg_token")
        return {**renamed, "rope_embed.periods": torch.rand(16), "mask_token": torch.rand(1, 384)}
    position = torch.cat([torch.zeros(1, 1, 384), stored["pos_embed"]], 1)
    renamed = {key: tensor for key, tensor in stored.items() if key not in ("reg_token", "pos_embed")}
    return {
        **renamed,
        "register_tokens": stored["reg_token"],
        "pos_embed": position,
        "mask_token": torch.rand(1, 384),
    }


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_weights_with_the_names_of_their_publisher_are_read(name: str, tmp_path: Path) -> None:
    reference = transformer(name, tmp_path / "timm.safetensors")
    torch.save(published(name, reference.state_dict()), tmp_path / "published.pth")
    one, other = Backbone(name, ("s8",)), Backbone(name, ("s8",))
    one.load(str(tmp_path / "timm.safetensors"))
    other.load(str(tmp_path / "published.pth"))
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("vit_tiny_patch16_224", "vit_small_patch16_224"),
        ("vit_tiny_patch16_224", "vit_small_patch14_dinov2"),
        ("vit_small_patch16_224", "vit_small_patch14_dinov2"),
        ("vit_small_patch16_224", "vit_small_patch16_dinov3"),
        ("resnet18", "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", "resnet34"),
    ],
)
def test_weights_of_another_network_raise_one_line(file: str, other: str, tmp_path: Path) -> None:
    save_file(installed_timm().create_model(file).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=rf"weights.safetensors: not the weights of {other}; \d+ of its") as raised:
        Backbone(other, ("s16",)).load(str(tmp_path / "weights.safetensors"))
    assert "\n" not in str(raised.value)


def test_unknown_training_of_a_transformer_raises_config_error() -> None:
    installed_timm()
    with pytest.raises(ConfigError, match=r"unknown backbone 'test_vit.nothing': .*; omit what follows the point"):
        Backbone("test_vit.nothing", ("s16",))
