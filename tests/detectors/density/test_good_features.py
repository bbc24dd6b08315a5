"""Features of images, perturbed and turned copies: their order, whose copies they are, and what a subspace gains."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from metalad.data.corruptions import brightness, perturbed, rotation, turned_in_other_light
from metalad.detectors.density import good_features as module
from metalad.detectors.density.good_features import GoodFeatures, good_features
from metalad.detectors.density.subspace import Subspace
from metalad.nn.backbones import Backbone
from metalad.nn.pixels import to_batch
from metalad.nn.standardization import Standardization
from tests.cookies import cookies

CPU = torch.device("cpu")


def coarse_maps(images: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nn.functional.avg_pool2d(images, 4), torch.nn.functional.avg_pool2d(images, 16)


def features_of(
    pixels: np.ndarray, copies: int = 1, seed: int = 0, *, turns: bool = True
) -> tuple[GoodFeatures, Standardization]:
    standardizations = Standardization(3), Standardization(3)
    return good_features(pixels, copies, turns, seed, coarse_maps, standardizations, CPU), standardizations[0]


def test_images_come_first_then_perturbed_copies_of_all_then_turned_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed again without batches, from the same random numbers in the same order."""
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    monkeypatch.setattr(module, "TURNED_PIXELS", 3 * 32 * 48)
    monkeypatch.setattr(module, "MIN_TURNED", 1)
    pixels = cookies(5, (32, 48))
    good, standardization = features_of(pixels, copies=2, seed=4)
    rng = np.random.default_rng(4)
    copies = [perturbed(image, rng) for _ in range(2) for image in pixels]
    turned = [turned_in_other_light(pixels[index], rng) for index in good.turned]
    assert len(good.turned) == 3
    assert good.turned.tolist() == sorted(set(good.turned.tolist()))
    expected = standardization(coarse_maps(to_batch(np.stack([*pixels, *copies, *turned])))[0])
    torch.testing.assert_close(good.features.fine, expected, rtol=0, atol=1e-6)
    own_and_copies = good.features.fine[good.with_perturbed].transpose(0, 1).flatten(1)
    assert len(good.with_perturbed) == 15
    torch.testing.assert_close(own_and_copies.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(own_and_copies.std(1, correction=0), torch.ones(3), rtol=0, atol=1e-5)


def test_a_subspace_gets_the_chosen_images_and_their_turned_copies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of an image that is left out: it would be scored by what its own copy was fitted on."""
    monkeypatch.setattr(module, "TURNED_PIXELS", 3 * 32 * 48)
    monkeypatch.setattr(module, "MIN_TURNED", 1)
    good, _ = features_of(cookies(6, (32, 48)), copies=2)
    with_one, without = int(good.turned[-1]), next(iter({*range(6)} - set(good.turned.tolist())))
    chosen = torch.tensor([image + 6 * copy for copy in range(3) for image in (with_one, without)])
    images, turned = good.for_subspace(chosen)
    assert images.tolist() == [with_one, without]
    assert turned.tolist() == [18 + 2]


def test_turned_copies_can_be_left_out() -> None:
    good, _ = features_of(cookies(3, (32, 48)), turns=False)
    assert len(good.features.fine) == 6
    assert [len(each) for each in good.for_subspace(good.with_perturbed)] == [3, 0]


@pytest.mark.parametrize(("images", "side", "expected"), [(100, 64, 100), (100, 512, 16), (100, 2048, 8), (5, 2048, 5)])
def test_the_number_of_turned_copies_is_limited_by_their_pixels(
    images: int, side: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * images + expected
    monkeypatch.setattr(module, "_altered_batches", lambda *_: iter([torch.rand(count, 3, 32, 32)]))
    good, _ = features_of(np.broadcast_to(np.uint8(0), (images, side, side, 3)))
    assert len(good.turned) == expected
    assert len(good.features.fine) == count


def test_with_turned_copies_the_residual_of_a_good_image_rises_less_with_light_and_angle() -> None:
    """Images that were not fitted on, with real features."""
    backbone = Backbone("lite0", ("s4", "s32"))
    backbone.load()
    pixels = cookies(12, (64, 96))

    def maps_of(images: Tensor) -> tuple[Tensor, Tensor]:
        fine, deep = backbone(images)
        return fine, deep

    standardizations = Standardization(24), Standardization(320)
    with torch.no_grad():
        good = good_features(pixels[:8], 1, True, 0, maps_of, standardizations, CPU)
        own, turned = (
            good.features.fine[each].permute(0, 2, 3, 1).flatten(0, 2)
            for each in good.for_subspace(good.with_perturbed)
        )
        for change in (partial(brightness, change=0.12), partial(rotation, degrees=2.0)):
            rises = []
            for samples in ([own], [own, turned]):
                subspace = Subspace()
                subspace.fit(samples, 0.99)
                residuals = [
                    subspace(standardizations[0](maps_of(to_batch(images))[0]).permute(0, 2, 3, 1).flatten(0, 2))
                    for images in (pixels[8:], np.stack([change(image) for image in pixels[8:]]))
                ]
                rises.append(float(residuals[1].mean() / residuals[0].mean()))
            assert rises[1] < rises[0]
