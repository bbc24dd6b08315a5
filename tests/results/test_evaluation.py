"""The numbers of a report by defect size and under corruptions, against scikit-learn on synthetic images."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.integrate import trapezoid
from sklearn.metrics import roc_auc_score, roc_curve

from metalad.data.corruptions import CORRUPTIONS
from metalad.results.evaluation import SIZE_BOUNDS, Evaluation, MeasuredImage, measure_pixels, size_index
from metalad.results.report import ScoringReport

SIDE = 32
THRESHOLD = 0.565
DEFECTS = {"speck": 1, "hole": 2, "dent": 4, "gap": 8, "half": 16, "blotch": 16}
"""Sides of square defects: 0.098 %, 0.39 %, 1.6 %, 6.3 % and 25 % of the image."""


@dataclasses.dataclass(frozen=True, eq=False)
class Synthetic:
    """A synthetic test image; `mask` is None for an anomalous image without ground truth."""

    defect: str
    pixels: np.ndarray
    mask: np.ndarray | None


@pytest.fixture(scope="module")
def images() -> list[Synthetic]:
    """Bright good images, and anomalous ones with a dark square each; one has no mask, one an empty mask."""
    rng = np.random.default_rng(0)
    made = []
    for name in ["good"] * 20 + list(DEFECTS) * 2 + ["unmasked", "empty"]:
        mask = np.zeros((SIDE, SIDE), bool)
        if name in DEFECTS:
            mask[4 : 4 + DEFECTS[name], 5 : 5 + DEFECTS[name]] = True
        gray = rng.normal(150, 25, (SIDE, SIDE, 1)).clip(0, 255) - 60 * mask[..., None]
        pixels = np.repeat(gray.clip(0, 255).astype(np.uint8), 3, axis=2)
        made.append(Synthetic(name, pixels, None if name == "unmasked" else mask))
    return made


def darkness(pixels: np.ndarray) -> np.ndarray:
    """The anomaly maps: dark pixels are anomalous."""
    return np.asarray((1 - pixels.astype(np.float64).mean(-1) / 255) ** 2, np.float32)


def measured(image: Synthetic, number: int, *, corrupted: bool = False) -> MeasuredImage:
    anomaly_map = darkness(image.pixels)
    score = float(anomaly_map.max())
    changed = {}
    if corrupted and image.defect == "good":
        changed = {name: float(darkness(corrupt(image, name, number)).max()) for name in CORRUPTIONS}
    return MeasuredImage(
        defect=image.defect,
        label=image.defect != "good",
        scores={"calibrated": 10 * score, "raw": score},
        pixels=measure_pixels({"calibrated": 10 * anomaly_map, "raw": anomaly_map}, image.mask),
        size=size_index(image.mask),
        corrupted={name: {"calibrated": 10 * value, "raw": value} for name, value in changed.items()},
    )


def corrupt(image: Synthetic, name: str, number: int) -> np.ndarray:
    corruption: Callable[..., np.ndarray] = CORRUPTIONS[name]
    return corruption(image.pixels, np.random.default_rng(number))


def evaluated(images: Sequence[Synthetic], *, corrupted: bool = False) -> ScoringReport:
    evaluation = Evaluation(("calibrated", "raw"))
    for number, image in enumerate(images):
        evaluation.add(measured(image, number, corrupted=corrupted))
    return evaluation.report("raw", THRESHOLD, 0.01)


@pytest.fixture(scope="module")
def report(images: list[Synthetic]) -> ScoringReport:
    return evaluated(images, corrupted=True)


def auroc_to_0_3(truth: np.ndarray, scores: np.ndarray) -> float:
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    edges = np.append(fpr[fpr < 0.3], 0.3)
    return float(trapezoid(np.interp(edges, fpr, tpr), edges) / 0.3)


def test_all_images_give_the_metrics_and_the_confusion(report: ScoringReport, images: list[Synthetic]) -> None:
    scores = np.array([darkness(image.pixels).max() for image in images])
    labels = np.array([image.defect != "good" for image in images])
    masks = {index: image.mask for index, image in enumerate(images) if image.mask is not None}
    truth = np.concatenate([mask.ravel() for mask in masks.values()])
    maps = np.concatenate([darkness(images[index].pixels).ravel() for index in masks])
    for metrics in (report.metrics_model, report.metrics_original):  # the images have the size of the maps
        assert metrics.image_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
        assert metrics.pixel_auroc == pytest.approx(roc_auc_score(truth, maps), abs=1e-9)
        assert metrics.pixel_auroc_fpr30 == pytest.approx(auroc_to_0_3(truth, maps), abs=1e-4)
    counts = report.confusion
    assert (counts.tp, counts.fn) == ((scores[labels] > THRESHOLD).sum(), (scores[labels] <= THRESHOLD).sum())
    assert (counts.fp, counts.tn) == ((scores[~labels] > THRESHOLD).sum(), (scores[~labels] <= THRESHOLD).sum())
    assert min(counts.tp, counts.fn, counts.tn) > 0
    assert (report.name, report.threshold, report.false_alarm_rate) == ("raw", THRESHOLD, 0.01)


def test_a_scoring_is_evaluated_by_its_own_scores_and_maps(images: list[Synthetic]) -> None:
    evaluation = Evaluation(("calibrated", "raw"))
    for number, image in enumerate(images):
        evaluation.add(measured(image, number))
    raw, calibrated = evaluation.report("raw", THRESHOLD, None), evaluation.report("calibrated", 10 * THRESHOLD, None)
    assert calibrated.confusion == raw.confusion
    assert calibrated.metrics_model.image_auroc == raw.metrics_model.image_auroc
    assert calibrated.metrics_model.pixel_auroc == pytest.approx(raw.metrics_model.pixel_auroc, abs=1e-6)
    assert evaluation.report("calibrated", THRESHOLD, None).confusion != raw.confusion


def test_defects_of_each_kind_are_compared_with_the_good_images(report: ScoringReport, images: list[Synthetic]) -> None:
    scores = np.array([darkness(image.pixels).max() for image in images])
    names = np.array([image.defect for image in images])
    assert [row.defect for row in report.per_defect] == sorted({*DEFECTS, "unmasked", "empty"})
    for row in report.per_defect:
        here = names == row.defect
        compared = here | (names == "good")
        assert (row.images, row.found) == (here.sum(), (scores[here] > THRESHOLD).sum())
        assert row.metrics.image_auroc == pytest.approx(roc_auc_score(here[compared], scores[compared]), abs=1e-9)


def test_defects_of_each_size_are_compared_with_the_good_images(report: ScoringReport, images: list[Synthetic]) -> None:
    maps = np.stack([darkness(image.pixels) for image in images])
    names = np.array([image.defect for image in images])
    by_size = [["speck"], ["hole"], ["dent"], ["gap"], ["half", "blotch"]]
    assert [row.images for row in report.per_size] == [2, 2, 2, 2, 4]
    for row, members in zip(report.per_size, by_size, strict=True):
        here = np.isin(names, members)
        side = DEFECTS[members[0]]
        assert row.least <= side**2 / SIDE**2 < row.below
        compared = here | (names == "good")
        masks = np.zeros(maps.shape, bool)
        masks[here, 4 : 4 + side, 5 : 5 + side] = True
        expected = auroc_to_0_3(masks[compared].ravel(), maps[compared].ravel())
        assert row.metrics.pixel_auroc_fpr30 == pytest.approx(expected, abs=1e-4)
        scores = maps[compared].max((1, 2))
        assert row.metrics.image_auroc == pytest.approx(roc_auc_score(here[compared], scores), abs=1e-9)
        assert row.found == (maps[here].max((1, 2)) > THRESHOLD).sum()
    assert 0 < sum(row.found for row in report.per_size) < 12  # some are missed


def test_sizes_without_defects_have_no_row(images: list[Synthetic]) -> None:
    rows = evaluated([image for image in images if image.defect in ("good", "hole", "half")]).per_size
    assert [(row.least, row.below) for row in rows] == [(0.001, 0.005), (0.08, 1.0)]


def test_images_without_a_mask_or_with_an_empty_one_have_no_size(images: list[Synthetic]) -> None:
    assert {image.defect for image in images if size_index(image.mask) < 0} == {"good", "unmasked", "empty"}


@pytest.mark.parametrize(
    ("anomalous", "size"),
    [(0, -1), (1, 0), (9, 0), (10, 1), (49, 1), (50, 2), (200, 3), (799, 3), (800, 4), (10_000, 4)],
)
def test_a_bound_belongs_to_the_larger_size(anomalous: int, size: int) -> None:
    mask = np.zeros(10_000, bool)
    mask[:anomalous] = True
    assert size_index(mask.reshape(100, 100)) == size
    assert len(SIZE_BOUNDS) == 6


def test_the_loss_by_each_corruption_is_that_of_scikit_learn(report: ScoringReport, images: list[Synthetic]) -> None:
    truth = np.array([image.defect != "good" for image in images])
    before = np.array([darkness(image.pixels).max() for image in images])
    rows = {row.corruption: row for row in report.per_corruption}
    assert list(rows) == list(CORRUPTIONS)
    for name, row in rows.items():
        after = before.copy()
        for index in np.flatnonzero(~truth):
            after[index] = darkness(corrupt(images[index], name, int(index))).max()
        assert row.images == 20
        assert row.image_auroc == pytest.approx(roc_auc_score(truth, after))
        assert row.image_auroc_loss == pytest.approx(roc_auc_score(truth, before) - roc_auc_score(truth, after))
        assert row.false_alarm_rate == (after[~truth] > THRESHOLD).mean()
        assert row.false_alarm_rate_before == (before[~truth] > THRESHOLD).mean() == report.confusion.fp / 20
    # By this map a darker image is more anomalous.
    dark, bright = rows["brightness -10 %"], rows["brightness +10 %"]
    assert dark.image_auroc_loss is not None
    assert bright.image_auroc_loss is not None
    assert dark.image_auroc_loss > 0 > bright.image_auroc_loss
    assert dark.false_alarm_rate > dark.false_alarm_rate_before >= bright.false_alarm_rate


def test_corruptions_change_nothing_else_in_the_report(report: ScoringReport, images: list[Synthetic]) -> None:
    without = evaluated(images)
    assert without.per_corruption == ()
    assert without == dataclasses.replace(report, per_corruption=())


def test_without_anomalous_images_only_false_alarms_are_defined(images: list[Synthetic]) -> None:
    rows = evaluated(images[:20], corrupted=True).per_corruption
    assert len(rows) == len(CORRUPTIONS)
    assert {(row.image_auroc, row.image_auroc_loss) for row in rows} == {(None, None)}
    assert evaluated(images[20:], corrupted=True).per_corruption == ()


def test_the_order_of_images_does_not_matter(report: ScoringReport, images: list[Synthetic]) -> None:
    numbered = list(enumerate(images))
    evaluation = Evaluation(("calibrated", "raw"))
    for number, image in numbered[::-1]:
        evaluation.add(measured(image, number, corrupted=True))
    found = evaluation.report("raw", THRESHOLD, 0.01)
    assert found.confusion == report.confusion
    metrics, expected = (
        [row.metrics for row in rows.per_defect] + [row.metrics for row in rows.per_size] for rows in (found, report)
    )
    for one, other in zip(metrics, expected, strict=True):
        assert dataclasses.asdict(one) == pytest.approx(dataclasses.asdict(other), abs=1e-12)
    for row, same in zip(found.per_corruption, report.per_corruption, strict=True):
        assert dataclasses.asdict(row) == pytest.approx(dataclasses.asdict(same), abs=1e-12)
