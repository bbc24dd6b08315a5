import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metalad.data.defects import read_defects
from metalad.data.framing import Framing
from metalad.data.images import write_image
from metalad.methods.supersimplenet import (
    Heads,
    Labelled,
    SuperSimpleNet,
    SuperSimpleNetConfig,
    anomaly_loss,
    focal_loss,
    with_synthetic_anomalies,
)
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.training.loop import Descent
from tests.cookies import cookies

SIZE = (64, 80)


def small(**changes: object) -> SuperSimpleNet:
    torch.manual_seed(0)
    settings = {"segmentation_width": 8, "classification_width": 4, **changes}
    model = SuperSimpleNet(SuperSimpleNetConfig(image_size=SIZE, **settings))  # type: ignore[arg-type]
    model.prepare("train", cookies(6, SIZE), 0)
    model.loss(to_batch(cookies(4, SIZE)))  # updates the running statistics of batch norm
    return model.eval()


def good(count: int = 64, side: int = 16) -> Labelled:
    return Labelled.good(torch.randn(count, 5, side, side))


def test_published_heads_have_the_sizes_of_the_paper() -> None:
    """Features of Wide ResNet-50: 512 + 1,024 channels."""
    model = SuperSimpleNet(
        SuperSimpleNetConfig(
            backbone="wide_resnet50_2", standardized=False, segmentation_width=1024, classification_width=128
        )
    )
    assert model.adaptor.weight.shape == (1536, 1536, 1, 1)
    assert [tuple(tensor.shape) for tensor in model.heads.segmentation.parameters()] == [
        (1024, 1536, 1, 1),
        (1024,),
        (1024,),
        (1024,),
        (1, 1024, 1, 1),
    ]
    assert model.heads.get_parameter("classification.0.weight").shape == (128, 1537, 5, 5)
    assert model.heads.score.weight.shape == (1, 258)


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("size", [(64, 80), (50, 77)])
def test_features_have_the_grid_of_the_finest_map_times_the_upsampling(size: tuple[int, int], upsampling: int) -> None:
    model = SuperSimpleNet(SuperSimpleNetConfig(image_size=size, upsampling=upsampling, smoothing_sigma=1.0))
    maps = [torch.zeros_like(each) for each in model.backbone(torch.zeros(2, 3, *size))]
    grid = [upsampling * math.ceil(side / 8) for side in size]
    assert model._adapted(maps).shape == (2, 152, *grid)


def test_features_are_standardized_upsampled_and_averaged_before_the_adaptor() -> None:
    model = small(upsampling=2)
    torch.nn.init.dirac_(model.adaptor.weight)  # the identity
    images = to_batch(cookies(2, SIZE))
    with torch.no_grad():
        torch.nn.init.zeros_(model.adaptor.bias)  # type: ignore[arg-type]
        adapted = model._adapted(model.backbone(images))
        fine = model.targets[0](model.backbone(images)[0])
    upsampled = torch.nn.functional.interpolate(fine, scale_factor=2.0, mode="bilinear")
    expected = upsampled[..., 4:7, 8:11].mean((2, 3))
    torch.testing.assert_close(adapted[:, : fine.shape[1], 5, 9], expected)


def test_synthetic_anomalies_are_noise_within_their_mask_in_about_half_of_the_copies() -> None:
    torch.manual_seed(0)
    before = good()
    after = with_synthetic_anomalies(before, 0.3, 0.2)
    difference = after.features - torch.cat([before.features, before.features])
    assert after.features.shape[0] == 2 * len(before.features)
    masks = after.masks[:, None].expand_as(difference)
    assert (difference[~masks] == 0).all()
    assert float(difference[masks].std()) == pytest.approx(0.3, rel=0.02)
    assert float(difference[masks].mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(after.labels, after.masks.flatten(1).any(1))
    assert 0.3 < float(after.labels.float().mean()) < 0.6
    assert 0.1 < float(after.masks[after.labels].float().mean()) < 0.5


def test_a_higher_perlin_threshold_gives_smaller_regions() -> None:
    areas = []
    for threshold in (-1.0, 0.0, 0.2, 0.6):
        torch.manual_seed(0)
        areas.append(float(with_synthetic_anomalies(good(), 1.0, threshold).masks.float().mean()))
    assert areas == sorted(areas, reverse=True)
    assert areas[0] == pytest.approx(0.5, abs=0.1)  # whole images, half of them


def test_real_anomalies_stay_unchanged_and_keep_their_labels() -> None:
    """An image-level label without a mask stays anomalous, too."""
    torch.manual_seed(0)
    features, masks, labels, located = good()
    masks[:, :8] = True
    labels[:] = True
    masks[5] = False
    after = with_synthetic_anomalies(Labelled(features, masks, labels, located), 1.0, 0.0)
    both = torch.cat([features, features])
    real = torch.cat([masks, masks])
    assert after.labels.all()
    assert (after.masks | ~real).all()
    assert torch.equal(after.features.movedim(1, -1)[real], both.movedim(1, -1)[real])
    assert not torch.equal(after.features, both)


def test_loss_has_the_terms_of_the_paper() -> None:
    torch.manual_seed(0)
    maps, scores = torch.randn(3, 4, 5), torch.randn(3)
    masks, labels = torch.rand(3, 4, 5) > 0.7, torch.tensor([True, False, True])

    def focal(logits: Tensor, anomalous: Tensor) -> float:
        terms = []
        for logit, is_anomalous in zip(logits.flatten().tolist(), anomalous.flatten().tolist(), strict=True):
            probability = 1 / (1 + math.exp(-logit if is_anomalous else logit))
            terms.append(-((1 - probability) ** 4) * math.log(probability))
        return sum(terms) / len(terms)

    normal = [max(0.0, logit + 0.5) for logit in maps[~masks].tolist()]
    anomalous = [max(0.0, 0.5 - logit) for logit in maps[masks].tolist()]
    expected = sum(normal) / len(normal) + sum(anomalous) / len(anomalous)
    expected += focal(maps, masks) + focal(scores, labels)
    every = Labelled(torch.zeros(3, 1, 4, 5), masks, labels, torch.ones(3, dtype=torch.bool))
    assert float(anomaly_loss(maps, scores, every)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("anomalous", [False, True])
def test_loss_of_one_class_is_finite_and_falls_to_0(anomalous: bool) -> None:
    masks = torch.full((2, 4, 4), anomalous)
    labels = masks.flatten(1).any(1)
    labelled = Labelled(torch.zeros(2, 1, 4, 4), masks, labels, torch.ones(2, dtype=torch.bool))
    sign = 1.0 if anomalous else -1.0
    losses = [
        float(anomaly_loss(sign * size * torch.ones(2, 4, 4), sign * size * torch.ones(2), labelled))
        for size in (-100.0, 0.0, 0.5, 100.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(100.5 + 2 * 100)
    assert losses[1] == pytest.approx(0.5 + 2 * math.log(2) / 16)
    assert losses[3] == 0


def test_focal_loss_has_finite_gradients_for_large_logits() -> None:
    logits = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4], requires_grad=True)
    for anomalous in (False, True):
        (gradient,) = torch.autograd.grad(focal_loss(logits, torch.full((5,), anomalous)), logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("supervised", [False, True])
def test_the_image_loss_trains_the_segmentation_head_only_if_supervised(supervised: bool) -> None:
    torch.manual_seed(0)
    heads = Heads(5, 8, 4)
    _, scores = heads(torch.randn(2, 5, 6, 7), supervised=supervised)
    parameters = list(heads.segmentation.parameters())
    gradients = torch.autograd.grad(scores.square().sum(), parameters, allow_unused=True)
    assert all((gradient is not None) == supervised for gradient in gradients)


def test_masks_of_defects_are_downsampled_and_those_without_a_position_only_have_a_label() -> None:
    masks = torch.zeros(4, 64, 80, dtype=torch.bool)
    masks[0, 16:40, 24:56] = True
    masks[1, 3, 3] = True  # smaller than a position
    masks[3, 16:40, 24:56] = True
    labelled = Labelled.defective(torch.zeros(4, 5, 8, 10), masks, torch.tensor([True, True, False, False]))
    on_grid = torch.zeros(8, 10, dtype=torch.bool)
    on_grid[2:5, 3:7] = True
    assert torch.equal(labelled.masks[0], on_grid)
    assert labelled.labels.all()
    assert labelled.located.tolist() == [True, False, False, False]


def test_an_image_whose_mask_is_not_known_trains_the_image_score_alone() -> None:
    torch.manual_seed(0)
    maps, scores = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, requires_grad=True)
    masks, labels = torch.zeros(2, 4, 5, dtype=torch.bool), torch.tensor([False, True])
    loss = anomaly_loss(maps, scores, Labelled(torch.zeros(2, 1, 4, 5), masks, labels, torch.tensor([True, False])))
    of_maps, of_scores = torch.autograd.grad(loss, (maps, scores))
    assert (of_maps[0] != 0).any()
    assert (of_maps[1] == 0).all()
    assert (of_scores != 0).all()


@pytest.fixture
def defects(tmp_path: Path) -> Path:
    """A category with two defective images: a white square with a mask, and one without."""
    for index, image in enumerate(cookies(2, SIZE)):
        image[16:40, 24:56] = 255
        write_image(tmp_path / "test" / "square" / f"{index}.png", image)
    mask = np.zeros(SIZE, np.uint8)
    mask[16:40, 24:56] = 255
    write_image(tmp_path / "ground_truth" / "square" / "0_mask.png", mask)
    return tmp_path


def test_a_category_gives_its_defects_and_another_folder_all_of_its_images(defects: Path) -> None:
    read = read_defects(defects, Framing(SIZE))
    assert read.located.tolist() == [True, False]
    assert read.masks[0].sum() == 24 * 32
    assert not read.masks[1].any()
    plain = read_defects(defects / "test" / "square", Framing(SIZE))
    assert np.array_equal(plain.pixels, read.pixels)
    assert not plain.located.any()
    assert plain.hashes == read.hashes


def test_a_folder_without_defects_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "good" / "0.png", cookies(1, SIZE)[0])
    with pytest.raises(DataError, match="no images of defects in"):
        read_defects(tmp_path, Framing(SIZE))
    with pytest.raises(DataError):
        read_defects(tmp_path / "absent", Framing(SIZE))


def test_training_with_labelled_defects_recognizes_them(defects: Path) -> None:
    """The same steps with and without: only with them is the square, which resembles no noise, scored higher."""
    gains = []
    for folder in (None, str(defects)):
        model = small(defects=folder)
        descent = Descent(model, model.plan("default")[0], seed=0, precision="fp32", folder=None)
        for _ in range(20):
            descent.step(cookies(4, SIZE), 1e-3)
        model.eval()
        square = cookies(3, SIZE)[2:].copy()
        square[:, 16:40, 24:56] = 255
        with torch.no_grad():
            maps, scores = model._logits(to_batch(np.concatenate([cookies(3, SIZE)[2:], square])))
        gains.append(float(scores[1] - scores[0]))
        if folder:
            assert float(maps[1, 2:5, 3:7].mean()) > float(maps[0].max())
    assert gains[1] > max(gains[0], 0)


def test_defects_that_were_learnt_are_named_when_they_are_evaluated(defects: Path) -> None:
    model = small(defects=str(defects))
    assert len(model.further_hashes) == 2
    assert small().further_hashes == ()


def test_raw_map_is_the_logit_above_the_lowest_and_the_score_keeps_its_order() -> None:
    model = small()
    pixels = cookies(6, SIZE)
    model.conclude(pixels, pixels)
    images = to_batch(pixels)
    with torch.inference_mode():
        maps, scores = model._logits(images)
        residuals = model.residuals(images)
        raw = model.raw_map(residuals)
    assert float(model.lowest) == pytest.approx(float(maps.min()), rel=1e-5)
    expected = torch.nn.functional.interpolate(maps[:, None], SIZE, mode="bilinear")[:, 0] - maps.min()
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-4)
    assert residuals.score is not None
    assert torch.equal(residuals.score.argsort(), scores.argsort())
    torch.testing.assert_close(residuals.score.expm1().log(), scores, rtol=1e-3, atol=1e-3)


def test_the_adaptor_is_trained_at_half_the_rate_of_the_heads_and_nothing_else_is() -> None:
    model = small()
    descent = Descent(model, model.plan("paper")[0], seed=0, precision="fp32", folder=None)
    descent.step(cookies(2, SIZE), 2e-4)
    groups = descent.optimizers[0].param_groups
    rates = {id(tensor): group["lr"] for group in groups for tensor in group["params"]}
    assert rates == {id(tensor): 1e-4 for tensor in model.adaptor.parameters()} | {
        id(tensor): 2e-4 for tensor in model.heads.parameters()
    }


def test_published_plan() -> None:
    (plan,) = small().plan("paper")
    assert (plan.optimizer, plan.learning_rate, plan.weight_decay) == ("adamw", 2e-4, 1e-5)
    assert (plan.schedule, plan.batch_size, plan.max_epochs, plan.keep) == ("multistep", 32, 300, "last")


@pytest.mark.parametrize(
    "changes",
    [{"noise": 0.0}, {"noise": math.nan}, {"perlin_threshold": 1.0}, {"upsampling": 0}, {"segmentation_width": 0}],
)
def test_invalid_settings_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        SuperSimpleNetConfig(**changes)  # type: ignore[arg-type]
