"""Measurement: defects by size and good images under nuisances, against scikit-learn on a category made by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.integrate import trapezoid
from sklearn.metrics import roc_auc_score, roc_curve

from metalad.data import Images, Sample
from metalad.data.corruptions import CORRUPTIONS
from metalad.detectors.base import Detector, DetectorConfig
from metalad.detectors.residuals import Residuals
from metalad.pipelines.measurement import SIZE_BOUNDS, Tally, score_images, scoring_report, size_of
from metalad.results.report import Scoring

SIDE = 32
THRESHOLD = 0.565
DEFECTS = {"speck": 1, "hole": 2, "dent": 4, "gap": 8, "half": 16, "blotch": 16}
"""Sides of square defects: 0.098 %, 0.39 %, 1.6 %, 6.3 % and 25 % of the image."""


class Darkness(Detector):
    """What is dark is abnormal: a residual of its own darkness, no calibration, no smoothing."""

    name = "darkness"

    def residuals(self, images: torch.Tensor) -> Residuals:
        return Residuals(1 - images.mean(1, keepdim=True))


def draw(folder: Path) -> Images:
    """Bright good images, and abnormal ones with a dark square each; of one abnormal image nobody knows where."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    pixels: list[np.ndarray] = []
    for name in ["good"] * 20 + list(DEFECTS) * 2 + ["unmasked", "empty"]:
        index, mask = len(samples), np.zeros((SIDE, SIDE), bool)
        if name in DEFECTS:
            mask[4 : 4 + DEFECTS[name], 5 : 5 + DEFECTS[name]] = True
        image = rng.normal(150, 25, (SIDE, SIDE, 1)).clip(0, 255) - 60 * mask[..., None]
        path = folder / f"{index}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
        samples.append(Sample(path, name != "good", name, None if name in ("good", "unmasked") else path))
        pixels.append(np.repeat(image.clip(0, 255).astype(np.uint8), 3, axis=2))
    return Images(tuple(samples), np.stack(pixels), (), ((SIDE, SIDE),) * len(samples))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return draw(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def detector() -> Darkness:
    return Darkness(DetectorConfig(image_size=(SIDE, SIDE), smoothing_sigma=0.0))


@pytest.fixture(scope="module")
def tally(detector: Darkness, images: Images) -> Tally:
    return score_images(detector, images, corruption=True)


@pytest.fixture(scope="module")
def found(tally: Tally, images: Images) -> Scoring:
    return scoring_report("raw", tally, images.samples, THRESHOLD, 0.01)


def darkness(pixels: np.ndarray) -> np.ndarray:
    """The anomaly maps that `Darkness` makes, in NumPy."""
    return np.asarray((1 - pixels.astype(float).mean(3) / 255) ** 2)


def auroc_to_0_3(truth: np.ndarray, scores: np.ndarray) -> float:
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    edges = np.append(fpr[fpr < 0.3], 0.3)
    return float(trapezoid(np.interp(edges, fpr, tpr), edges) / 0.3)


def test_defects_of_one_size_are_set_against_the_good_images(found: Scoring, images: Images) -> None:
    maps = darkness(images.pixels)
    names = np.array([sample.defect for sample in images.samples])
    by_size = [["speck"], ["hole"], ["dent"], ["gap"], ["half", "blotch"]]
    assert [row.images for row in found.per_size] == [2, 2, 2, 2, 4]
    for row, members in zip(found.per_size, by_size, strict=True):
        here = np.isin(names, members)
        side = DEFECTS[members[0]]
        assert row.least <= side**2 / SIDE**2 < row.below
        kept = here | (names == "good")
        masks = np.zeros(maps.shape, bool)
        masks[here, 4 : 4 + side, 5 : 5 + side] = True
        expected = auroc_to_0_3(masks[kept].ravel(), maps[kept].ravel())
        assert row.metrics.pixel_auroc_fpr30 == pytest.approx(expected, abs=1e-4)
        scores = maps[kept].max((1, 2))
        assert row.metrics.image_auroc == pytest.approx(roc_auc_score(here[kept], scores), abs=1e-9)
        assert row.found == (maps[here].max((1, 2)) > THRESHOLD).sum()
    assert 0 < sum(row.found for row in found.per_size) < 12  # some are missed


def test_a_size_that_no_defect_has_is_left_out(detector: Darkness, images: Images) -> None:
    kept = [index for index, sample in enumerate(images.samples) if sample.defect in ("good", "hole", "half")]
    some = Images(
        tuple(images.samples[index] for index in kept), images.pixels[kept], (), tuple(images.sizes[i] for i in kept)
    )
    rows = scoring_report("raw", score_images(detector, some), some.samples, THRESHOLD, 0.01).per_size
    assert [(row.least, row.below) for row in rows] == [(0.001, 0.005), (0.08, 1.0)]


def test_an_image_without_a_mask_or_with_an_empty_one_has_no_size(tally: Tally, images: Images) -> None:
    unknown = {sample.defect for sample, size in zip(images.samples, tally.sizes, strict=True) if size < 0}
    assert unknown == {"good", "unmasked", "empty"}


@pytest.mark.parametrize(
    ("abnormal", "size"),
    [(0, -1), (1, 0), (9, 0), (10, 1), (49, 1), (50, 2), (200, 3), (799, 3), (800, 4), (10_000, 4)],
)
def test_a_bound_belongs_to_the_size_above_it(abnormal: int, size: int) -> None:
    mask = np.zeros(10_000, bool)
    mask[:abnormal] = True
    assert size_of(mask.reshape(100, 100)) == size
    assert len(SIZE_BOUNDS) == 6


def test_only_good_images_are_changed(tally: Tally, images: Images) -> None:
    good = np.array([not sample.abnormal for sample in images.samples])
    assert list(tally.corrupted) == list(CORRUPTIONS)
    for scores in tally.corrupted.values():
        for scoring, changed in scores.items():
            np.testing.assert_array_equal(changed[~good], tally.scores[scoring][~good])
            assert (changed[good] != tally.scores[scoring][good]).any()


def test_a_nuisance_costs_what_scikit_learn_says(found: Scoring, images: Images) -> None:
    truth = np.array([sample.abnormal for sample in images.samples])
    before = darkness(images.pixels).max((1, 2))
    rows = {row.corruption: row for row in found.per_corruption}
    assert list(rows) == list(CORRUPTIONS)
    for name, row in rows.items():
        pixels = images.pixels.copy()
        for index in np.flatnonzero(~truth):
            pixels[index] = CORRUPTIONS[name](images.pixels[index], np.random.default_rng(index))
        after = darkness(pixels).max((1, 2))
        assert row.images == 20
        assert row.image_auroc == pytest.approx(roc_auc_score(truth, after))
        assert row.image_auroc_loss == pytest.approx(roc_auc_score(truth, before) - roc_auc_score(truth, after))
        assert row.false_alarm_rate == (after[~truth] > THRESHOLD).mean()
        assert row.false_alarm_rate_before == (before[~truth] > THRESHOLD).mean() == found.confusion.fp / 20
    # To this detector a darker image is a more abnormal one.
    dark, bright = rows["brightness -10 %"], rows["brightness +10 %"]
    assert dark.image_auroc_loss is not None
    assert bright.image_auroc_loss is not None
    assert dark.image_auroc_loss > 0 > bright.image_auroc_loss
    assert dark.false_alarm_rate > dark.false_alarm_rate_before >= bright.false_alarm_rate


def test_nuisances_change_nothing_else_in_the_report(found: Scoring, detector: Darkness, images: Images) -> None:
    without = scoring_report("raw", score_images(detector, images), images.samples, THRESHOLD, 0.01)
    assert without.per_corruption == ()
    assert without == dataclasses.replace(found, per_corruption=())


def test_without_abnormal_images_only_false_alarms_are_known(detector: Darkness, images: Images) -> None:
    good = Images(images.samples[:20], images.pixels[:20], (), images.sizes[:20])
    rows = scoring_report(
        "raw", score_images(detector, good, corruption=True), good.samples, THRESHOLD, 0.01
    ).per_corruption
    assert len(rows) == len(CORRUPTIONS)
    assert {(row.image_auroc, row.image_auroc_loss) for row in rows} == {(None, None)}
    abnormal = Images(images.samples[20:], images.pixels[20:], (), images.sizes[20:])
    assert score_images(detector, abnormal, corruption=True).corrupted == {}
