"""Networks of timm: with a stub of timm's interface, and with timm itself if it is installed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from metalad.nn.backbones import Backbone
from metalad.nn.networks import Tap
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


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, pretrained: bool, num_classes: int) -> Pyramid:
        assert (name, pretrained, num_classes) == ("pyramid", False, 0)
        return Pyramid()

    stub = ModuleType("timm")
    stub.__dict__.update(
        create_model=create_model,
        is_model=lambda name: name == "pyramid",
        list_models=lambda: ["pyramid"],
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
    real = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
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
