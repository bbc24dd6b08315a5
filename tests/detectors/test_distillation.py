from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metalad.detectors.distillation import Part, _piece, fill_in_order, fit_standardization, trained_backbone, varied
from metalad.nn.backbones import Backbone
from metalad.nn.pixels import batches, to_batch
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

SIZE = (40, 48)


def test_standardised_channels_have_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    maps = torch.randn(9, 3, 5, 7) * torch.tensor([0.1, 3.0, 50.0])[:, None, None] + 1000
    unit = Standardization(3)
    unit.fit([maps[:4], maps[4:]])
    found = unit(maps).double()
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.std((0, 2, 3), correction=0), torch.ones(3).double(), rtol=1e-3, atol=0)


def test_a_channel_that_does_not_vary_keeps_its_unit() -> None:
    maps = torch.full((2, 1, 3, 3), 0.1)
    unit = Standardization(1)
    unit.fit([maps])
    assert unit(maps).abs().max() < 1e-6
    assert unit.deviation == 1


def test_each_unit_learns_its_own_map() -> None:
    pixels = cookies(5, SIZE)
    units = [Standardization(3), Standardization(6)]
    fit_standardization(
        units, lambda images: [images, torch.cat([images, -2 * images], 1)], pixels, torch.device("cpu")
    )
    expected = to_batch(pixels).double().transpose(0, 1).flatten(1).mean(1).float()
    torch.testing.assert_close(units[0].mean.flatten(), expected)
    torch.testing.assert_close(units[1].mean.flatten(), torch.cat([expected, -2 * expected]))


def test_a_part_learns_alone() -> None:
    whole = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    part = Part(whole[1], lambda images: whole(images.mean((2, 3))).square().mean())
    (objective,) = part.objectives()
    assert {id(tensor) for tensor in objective.parameters} == {id(tensor) for tensor in whole[1].parameters()}
    assert part.loss(torch.ones(2, 3, 4, 4)) > 0


def test_a_backbone_comes_with_its_weights() -> None:
    backbone = trained_backbone("lite0", ("s8", "s16"), None, torch.device("cpu"))
    assert [maps.isfinite().all() for maps in backbone(torch.rand(1, 3, 32, 32))] == [True, True]
    assert [maps.shape[1] for maps in backbone(torch.rand(1, 3, 64, 64))] == [40, 112]


def test_weights_are_told_by_their_shapes_not_their_names(tmp_path: Path) -> None:
    own, other = (nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)) for _ in range(2))
    stored = {
        name.replace("0.", "conv1.").replace("2.", "conv2."): tensor for name, tensor in other.state_dict().items()
    }
    save_file(stored, tmp_path / "teacher.safetensors")
    fill_in_order(own, str(tmp_path / "teacher.safetensors"))
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(own(image), other(image))
    with pytest.raises(ConfigError, match="not the weights of this teacher, whose convolutions are 4x3x1x1"):
        fill_in_order(nn.Conv2d(3, 4, 1), str(tmp_path / "teacher.safetensors"))


def test_batches_are_spread_over_all_images() -> None:
    pixels = cookies(9, (4, 4))
    seen = torch.cat(list(batches(pixels, torch.device("cpu"), 2, limit=5)))
    assert torch.equal(seen, to_batch(pixels[::2]))
    assert torch.equal(torch.cat(list(batches(pixels, torch.device("cpu"), 4))), to_batch(pixels))


def test_varied_images_are_many_of_the_wanted_size_and_differ() -> None:
    images = to_batch(cookies(2, SIZE))
    torch.manual_seed(1)
    found = varied(images, (17, 23), copies=20)
    assert found.shape == (40, 3, 17, 23)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert len({tuple(image.flatten().tolist()) for image in found}) == 40
    assert (found.flatten(1).std(1) > 0.01).all()
    torch.manual_seed(1)
    assert torch.equal(varied(images, (17, 23), copies=20), found)


def test_zoom_is_the_length_that_a_pixel_shows() -> None:
    """A horizontal ramp of unit slope a pixel rises by the zoom from one pixel of the piece to the next."""
    ramp = torch.arange(400.0).expand(400, 400) / 400
    torch.manual_seed(0)
    pieces = _piece(ramp.expand(60, 3, 400, 400), (9, 9), (2.0, 2.0))[:, 0] * 400
    across, down = pieces.diff(dim=2)[:, :8], pieces.diff(dim=1)[:, :, :8]
    slope = (across.square() + down.square()).sqrt()
    inside = ((pieces > 20) & (pieces < 380)).all((1, 2))
    assert inside.sum() > 30
    torch.testing.assert_close(slope[inside], torch.full_like(slope[inside], 2.0), rtol=0, atol=1e-2)


def test_the_networks_stay_frozen_in_a_part() -> None:
    backbone = trained_backbone("lite0", ("s4",), None, torch.device("cpu"))
    before = [tensor.clone() for tensor in backbone.state_dict().values()]
    learning = nn.Conv2d(3, 24, 4, 4)
    part = Part(learning, lambda images: (learning(images) - backbone(images)[0]).square().mean())
    part.train()
    part.loss(torch.rand(2, 3, 32, 32)).backward()  # type: ignore[no-untyped-call]
    assert isinstance(backbone, Backbone)
    assert learning.weight.grad is not None
    assert all(torch.equal(one, other) for one, other in zip(before, backbone.state_dict().values(), strict=True))
