from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metalad.detectors.distillation import (
    PartLearner,
    _random_crop,
    fit_standardization,
    load_in_order,
    random_variants,
    trained_backbone,
)
from metalad.nn.backbones import Backbone
from metalad.nn.pixels import batches, to_batch
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies

SIZE = (40, 48)


def test_standardized_channels_have_mean_0_and_standard_deviation_1() -> None:
    torch.manual_seed(0)
    maps = torch.randn(9, 3, 5, 7) * torch.tensor([0.1, 3.0, 50.0])[:, None, None] + 1000
    standardization = Standardization(3)
    standardization.fit([maps[:4], maps[4:]])
    standardized = standardization(maps).double()
    torch.testing.assert_close(standardized.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(standardized.std((0, 2, 3), correction=0), torch.ones(3).double(), rtol=1e-3, atol=0)


def test_a_constant_channel_has_standard_deviation_1() -> None:
    maps = torch.full((2, 1, 3, 3), 0.1)
    standardization = Standardization(1)
    standardization.fit([maps])
    assert standardization(maps).abs().max() < 1e-6
    assert standardization.deviation == 1


def test_each_standardization_is_fitted_on_its_own_map() -> None:
    pixels = cookies(5, SIZE)
    standardizations = [Standardization(3), Standardization(6)]
    fit_standardization(
        standardizations, lambda images: [images, torch.cat([images, -2 * images], 1)], pixels, torch.device("cpu")
    )
    expected = to_batch(pixels).double().transpose(0, 1).flatten(1).mean(1).float()
    torch.testing.assert_close(standardizations[0].mean.flatten(), expected)
    torch.testing.assert_close(standardizations[1].mean.flatten(), torch.cat([expected, -2 * expected]))


def test_a_part_learner_trains_only_its_network() -> None:
    networks = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    part = PartLearner(networks[1], lambda images: networks(images.mean((2, 3))).square().mean())
    (objective,) = part.objectives()
    assert {id(tensor) for tensor in objective.parameters} == {id(tensor) for tensor in networks[1].parameters()}
    assert part.loss(torch.ones(2, 3, 4, 4)) > 0


def test_a_trained_backbone_has_its_weights() -> None:
    backbone = trained_backbone("lite0", ("s8", "s16"), None, torch.device("cpu"))
    assert [maps.isfinite().all() for maps in backbone(torch.rand(1, 3, 32, 32))] == [True, True]
    assert [maps.shape[1] for maps in backbone(torch.rand(1, 3, 64, 64))] == [40, 112]


def test_weights_are_assigned_by_order_and_shape_and_not_by_name(tmp_path: Path) -> None:
    own, other = (nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)) for _ in range(2))
    stored = {
        name.replace("0.", "conv1.").replace("2.", "conv2."): tensor for name, tensor in other.state_dict().items()
    }
    save_file(stored, tmp_path / "teacher.safetensors")
    load_in_order(own, str(tmp_path / "teacher.safetensors"))
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(own(image), other(image))
    with pytest.raises(ConfigError, match="not the weights of this teacher, whose convolutions are 4x3x1x1"):
        load_in_order(nn.Conv2d(3, 4, 1), str(tmp_path / "teacher.safetensors"))


def test_batches_are_evenly_spaced_over_all_images() -> None:
    pixels = cookies(9, (4, 4))
    subset = torch.cat(list(batches(pixels, torch.device("cpu"), 2, limit=5)))
    assert torch.equal(subset, to_batch(pixels[::2]))
    assert torch.equal(torch.cat(list(batches(pixels, torch.device("cpu"), 4))), to_batch(pixels))


def test_random_variants_have_the_requested_number_and_size_and_differ() -> None:
    images = to_batch(cookies(2, SIZE))
    torch.manual_seed(1)
    variants = random_variants(images, (17, 23), copies=20)
    assert variants.shape == (40, 3, 17, 23)
    assert float(variants.min()) >= 0
    assert float(variants.max()) <= 1
    assert len({tuple(image.flatten().tolist()) for image in variants}) == 40
    assert (variants.flatten(1).std(1) > 0.01).all()
    torch.manual_seed(1)
    assert torch.equal(random_variants(images, (17, 23), copies=20), variants)


def test_zoom_is_the_number_of_image_pixels_per_crop_pixel() -> None:
    """On a ramp with slope 1 per pixel, the gradient of a crop is the zoom."""
    ramp = torch.arange(400.0).expand(400, 400) / 400
    torch.manual_seed(0)
    crops = _random_crop(ramp.expand(60, 3, 400, 400), (9, 9), (2.0, 2.0))[:, 0] * 400
    across, down = crops.diff(dim=2)[:, :8], crops.diff(dim=1)[:, :, :8]
    slope = (across.square() + down.square()).sqrt()
    inside = ((crops > 20) & (crops < 380)).all((1, 2))
    assert inside.sum() > 30
    torch.testing.assert_close(slope[inside], torch.full_like(slope[inside], 2.0), rtol=0, atol=1e-2)


def test_other_networks_of_a_part_learner_stay_frozen() -> None:
    backbone = trained_backbone("lite0", ("s4",), None, torch.device("cpu"))
    before = [tensor.clone() for tensor in backbone.state_dict().values()]
    learning = nn.Conv2d(3, 24, 4, 4)
    part = PartLearner(learning, lambda images: (learning(images) - backbone(images)[0]).square().mean())
    part.train()
    part.loss(torch.rand(2, 3, 32, 32)).backward()  # type: ignore[no-untyped-call]
    assert isinstance(backbone, Backbone)
    assert learning.weight.grad is not None
    assert all(torch.equal(old, new) for old, new in zip(before, backbone.state_dict().values(), strict=True))
