"""Maps of a network that is computed in tiles are those of the whole image."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from metalad.nn import backbone_tiles
from metalad.nn.backbone_tiles import reach, tiled_features
from metalad.nn.backbones import Backbone
from metalad.nn.network import Hook, Network, Step, Tap, Window, identity_hook
from metalad.nn.networks import create_network
from metalad.nn.pixels import to_batch
from tests.cookies import cookies

ALL_TAPS: tuple[Tap, ...] = ("s4", "s8", "s16", "s32")
SIZES = ((96, 160), (97, 131), (66, 203), (211, 64))
"""Of even and odd numbers of rows and columns, at each stride."""


def use_tiles(monkeypatch: pytest.MonkeyPatch, tile: int, map_tile: int) -> None:
    monkeypatch.setattr(backbone_tiles, "WHOLE", 32 * 32)
    monkeypatch.setattr(backbone_tiles, "TILE", tile)
    monkeypatch.setattr(backbone_tiles, "MAP_TILE", map_tile)


def random_network(name: str, taps: tuple[Tap, ...]) -> Network:
    torch.manual_seed(0)
    return create_network(name, taps).eval()


def lite0() -> Network:
    backbone = Backbone("lite0", ALL_TAPS)
    backbone.load()
    return backbone.network


def largest_difference(network: Network, images: Tensor) -> float:
    """Return the largest difference between maps in tiles and whole maps, relative to the largest value of a map."""
    with torch.no_grad():
        whole = dict(network.features(network.normalised(images)))
        tiled = dict(tiled_features(network, images))
    assert list(tiled) == list(whole)
    for tap, maps in whole.items():
        assert tiled[tap].shape == maps.shape
        assert tiled[tap].stride() == maps.stride()
    return max(float((tiled[tap] - maps).abs().max() / maps.abs().max()) for tap, maps in whole.items())


@pytest.mark.parametrize(("tile", "map_tile"), [(32, 8), (48, 12), (40, 4), (64, 500)])
@pytest.mark.parametrize("size", SIZES)
def test_maps_in_tiles_are_those_of_the_whole_image(
    size: tuple[int, int], tile: int, map_tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiles(monkeypatch, tile, map_tile)
    assert largest_difference(lite0(), to_batch(cookies(2, size))) < 1e-5


@pytest.mark.parametrize(
    ("name", "taps"), [("resnet18", ALL_TAPS), ("wide_resnet50_2", ("s8",)), ("vgg16", ("s4", "s8", "s16"))]
)
@pytest.mark.parametrize("size", SIZES[1:3])
def test_other_convolutional_networks_are_computed_in_tiles_too(
    name: str, taps: tuple[Tap, ...], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiles(monkeypatch, 32, 8)
    network = random_network(name, taps)
    assert largest_difference(network, torch.rand(1, 3, *size)) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_tiles_with_a_smaller_margin_have_seams(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles(monkeypatch, 32, 8)

    def too_short(windows: tuple[Window, ...]) -> int:
        return max(0, reach(windows) - math.prod(window.stride for window in windows))

    monkeypatch.setattr(backbone_tiles, "reach", too_short)
    assert largest_difference(lite0(), to_batch(cookies(2, size))) > 1e-3


def test_the_reach_is_that_of_the_gradient() -> None:
    """An output position depends on no pixel that is farther from its block than the reach, and on one at the reach."""
    network = random_network("lite0", ("s8",))
    windows = tuple(window for step in network.chain() for window in step.windows)
    images = torch.rand(1, 3, 192, 192, requires_grad=True)
    ((_, maps),) = network.features(images)
    torch.autograd.backward(maps[0, :, 12, 12].square().sum())
    assert images.grad is not None
    used = images.grad[0].abs().sum(0).nonzero()
    first, last = used.min(0).values, used.max(0).values
    farthest = int(torch.maximum(12 * 8 - first, last - (13 * 8 - 1)).max())
    # The padding of an even number of positions is at their end, which moves windows by less than the stride.
    assert reach(windows) - 8 < farthest <= reach(windows)


def test_no_layer_gets_maps_that_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles(monkeypatch, 32, 8)
    network = random_network("lite0", ("s8",))

    def largest_input(images: Tensor, features: Callable[[Tensor], Iterator[object]]) -> int:
        sizes: list[int] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
            for layer in network.modules()
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
        ]
        with torch.no_grad():
            list(features(images))
        for hook in hooks:
            hook.remove()
        return max(sizes)

    small, large = torch.rand(1, 3, 256, 256), torch.rand(1, 3, 512, 256)
    tiled = [largest_input(images, lambda images: tiled_features(network, images)) for images in (small, large)]
    whole = [largest_input(images, network.features) for images in (small, large)]
    assert tiled[1] == tiled[0]
    assert whole[1] == 2 * whole[0]


def test_an_image_of_one_tile_is_computed_whole_to_the_last_bit() -> None:
    backbone, images = Backbone("lite0", ALL_TAPS), to_batch(cookies(1, (64, 96)))
    backbone.load()
    whole = dict(backbone.network.features(backbone.network.normalised(images)))
    assert all(torch.equal(maps, whole[tap]) for tap, maps in zip(ALL_TAPS, backbone(images), strict=True))


class Everywhere(Network):
    """A network whose maps depend on the mean of the whole image, as with squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def features(self, images: Tensor, hook: Hook = identity_hook) -> Iterator[tuple[Tap, Tensor]]:
        yield "s4", hook("s4", self.conv(images) * images.mean())


def test_a_network_that_is_no_chain_is_computed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles(monkeypatch, 32, 8)
    network, images = Everywhere(), torch.rand(1, 3, 97, 131)
    ((_, whole),) = network.features(network.normalised(images))
    ((_, tiled),) = tiled_features(network, images)
    assert torch.equal(tiled, whole)


def test_steps_of_single_positions_join_the_step_before() -> None:
    steps = [Step(nn.Identity(), (Window(3, stride),)) for stride in (2, 2, 1, 1)]
    steps[3:3] = [Step(nn.ReLU(), (), "s4")]
    groups = backbone_tiles._groups(steps)
    assert [len(group.steps) for group in groups] == [2, 2, 1]
    assert [group.tap for group in groups] == [None, "s4", None]


def test_layers_without_a_square_window_are_refused() -> None:
    for layer in (nn.Conv2d(1, 1, (3, 5)), nn.Conv2d(1, 1, 3, dilation=2), nn.MaxPool2d(2, (2, 1))):
        with pytest.raises(ValueError, match="no square window"):
            Window.of(layer)
    assert Window.of(nn.MaxPool2d(3, 2)) == Window(3, 2)
