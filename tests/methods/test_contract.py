"""Requirements on every registered method, tested on a few real images with very small settings.

The tests of a method share trained runs; with pytest-xdist they run in one process, and methods in several.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metalad
from metalad.detectors.base import SCORINGS, Detector, DetectorConfig, FittedDetector, GradientDetector, Scoring
from metalad.methods import OWN, method_named, methods
from metalad.methods.anogan import AnoGanConfig
from metalad.methods.efficientad import EfficientADConfig
from metalad.methods.f_anogan import FAnoGanConfig
from metalad.methods.feature_dictionary import FeatureDictionaryConfig
from metalad.methods.gt import GeometricTransformationsConfig
from metalad.methods.l2_ae import L2AutoencoderConfig
from metalad.methods.lsa import LsaConfig
from metalad.methods.metal import MetalConfig
from metalad.methods.metal_features import MetalFeaturesConfig
from metalad.methods.mkd import MKDConfig
from metalad.methods.ocgan import OcGanConfig
from metalad.methods.padim import PadimConfig
from metalad.methods.patchcore import PatchCoreConfig
from metalad.methods.piade import PiadeConfig
from metalad.methods.rd4ad import RD4ADConfig
from metalad.methods.ssim_ae import SsimAutoencoderConfig
from metalad.methods.student_teacher import StudentTeacherConfig
from metalad.methods.subspace_ad import SubspaceADConfig
from metalad.methods.supersimplenet import SuperSimpleNetConfig
from metalad.methods.texture_inspection import TextureInspectionConfig
from metalad.methods.vae import VaeConfig
from metalad.methods.variation_model import VariationModelConfig
from metalad.methods.vt_adl import VtAdlConfig
from metalad.nn.pixels import to_batch
from metalad.nn.smoothing import GuidedSmoothing
from metalad.pipelines.model import Model
from metalad.runtime import progress
from metalad.runtime.errors import DataError
from metalad.runtime.progress import bars
from metalad.storage.model_file import read_model
from metalad.training import loop
from metalad.training.loop import Descent, Epoch
from tests.cookies import cookies, put_cookies
from tests.tiny import TINY

SMALL: dict[str, DetectorConfig] = {
    "metal": TINY,
    "metal_features": MetalFeaturesConfig(image_size=(48, 64), smoothing_sigma=2.0, codebook_size=64, context_steps=5),
    "patchcore": PatchCoreConfig(image_size=(48, 64), smoothing_sigma=2.0, bank_fraction=0.5),
    "padim": PadimConfig(image_size=(48, 64), smoothing_sigma=2.0, channels=16, grid="s8"),
    "subspace_ad": SubspaceADConfig(image_size=(48, 64), smoothing_sigma=2.0, variance=0.9),
    "variation_model": VariationModelConfig(image_size=(48, 64)),
    "feature_dictionary": FeatureDictionaryConfig(image_size=(48, 64), samples=200),
    "texture_inspection": TextureInspectionConfig(
        # With Weber normalization, the inside of a patch of one color does not differ from any other flat region.
        image_size=(48, 64),
        levels=2,
        components=3,
        samples=500,
        normalization="none",
    ),
    "gt": GeometricTransformationsConfig(image_size=(16, 16), widening=1, shift=4, transforms="unshifted"),
    "f_anogan": FAnoGanConfig(image_size=(32, 32), smoothing_sigma=0.5, width=2, latent=8),
    "anogan": AnoGanConfig(image_size=(64, 64), width=2, latent=8, search_steps=5),
    "ocgan": OcGanConfig(image_size=(29, 29), width=8, smoothing_sigma=0.5, reconstruction_weight=500.0),
    "vt_adl": VtAdlConfig(
        image_size=(24, 32),
        patch_size=8,
        width=64,
        depth=1,
        heads=2,
        hidden_width=16,
        components=2,
        smoothing_sigma=1.0,
    ),
    "piade": PiadeConfig(image_size=(24, 24), smoothing_sigma=1.0),
    "l2_ae": L2AutoencoderConfig(image_size=(32, 32), smoothing_sigma=1.0, code=8, width=4),
    "student_teacher": StudentTeacherConfig(
        image_size=(32, 48), smoothing_sigma=2.0, width=4, students=2, taps=("s4", "s8")
    ),
    "efficientad": EfficientADConfig(
        image_size=(48, 64), smoothing_sigma=2.0, width=4, channels=16, autoencoder=2, taps=("s4",)
    ),
    "mkd": MKDConfig(image_size=(32, 48), smoothing_sigma=3.0),
    "rd4ad": RD4ADConfig(image_size=(32, 48), smoothing_sigma=2.0, taps=("s4", "s8")),
    "supersimplenet": SuperSimpleNetConfig(
        image_size=(64, 64),
        smoothing_sigma=2.0,
        taps=("s4", "s8"),
        segmentation_width=16,
        classification_width=4,
        noise=1.0,
    ),
    "vae": VaeConfig(image_size=(32, 32), smoothing_sigma=1.0, code=16, width=8),
    # A patch of one color differs from a blurred reconstruction only near its edges; here all of it is near one.
    "ssim_ae": SsimAutoencoderConfig(image_size=(16, 16), smoothing_sigma=0.0, code=32, width=16),
    "lsa": LsaConfig(image_size=(32, 32), smoothing_sigma=1.0, code=16, bins=10, width=8, estimator_width=4),
}
PARAMETERS: dict[str, tuple[DetectorConfig, int]] = {
    "metal": (MetalConfig(), 17_876_480),
    "metal_features": (MetalFeaturesConfig(), 3_454_468),  # 495,620 of them for context prediction
    "patchcore": (PatchCoreConfig(), 700_768),
    "padim": (PadimConfig(), 700_768),
    "subspace_ad": (SubspaceADConfig(), 700_768),
    "variation_model": (VariationModelConfig(), 0),
    "feature_dictionary": (FeatureDictionaryConfig(), 700_768),
    "texture_inspection": (TextureInspectionConfig(), 0),
    "gt": (GeometricTransformationsConfig(), 1_214_744),
    "f_anogan": (FAnoGanConfig(width=64), 24_564_676),
    "anogan": (AnoGanConfig(), 285_148),
    "ocgan": (OcGanConfig(), 3_351_494),
    "vt_adl": (VtAdlConfig(), 2_071_819),
    "piade": (PiadeConfig(), 7_590_211),
    "l2_ae": (L2AutoencoderConfig(), 1_050_599),
    "student_teacher": (StudentTeacherConfig(), 1_627_144),
    "efficientad": (EfficientADConfig(), 1_297_736),
    "mkd": (MKDConfig(), 3_067_824),
    "rd4ad": (RD4ADConfig(), 2_388_800),
    "supersimplenet": (SuperSimpleNetConfig(), 805_275),
    "vae": (VaeConfig(), 1_760_115),
    "ssim_ae": (SsimAutoencoderConfig(), 1_048_549),
    "lsa": (LsaConfig(), 36_849_088),
}
"""Config and number of parameters, trained or pretrained, with default settings; fitted buffers do not count."""
IMAGES = 10
EPOCHS = 150
SHORT = 2
FEWER_EPOCHS = {
    "anogan": 40,
    "efficientad": 20,
    "f_anogan": 50,
    "gt": 40,
    "metal": 50,
    "ocgan": 50,
    "piade": 60,
    "rd4ad": 40,
    "ssim_ae": 75,
    "student_teacher": 40,
    "supersimplenet": 30,
    "vae": 75,
    "vt_adl": 75,
}
"""For methods that need fewer: after these, the maps are at least 1.2 times as high at a defect as without it."""
BATCH_TOLERANCE = 1e-5
"""Relative to the largest value of the map: the batch size can change the order of summation."""


def _each(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrize a test with methods; the tests of one method run in one process."""
    return pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names])


each_method = _each(methods())
"""Includes the methods of installed packages."""
each_own_method = _each(method.name for method in OWN)
each_fitted_method = _each(method.name for method in OWN if issubclass(method.load(), FittedDetector))
each_scoring = pytest.mark.parametrize("scoring", SCORINGS)


@pytest.fixture(scope="session")
def good_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_cookies(tmp_path_factory.mktemp("images"), IMAGES)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, good_images: Path) -> "Runs":
    return Runs(tmp_path_factory.mktemp("runs"), good_images)


class Runs:
    """A trained run and one of a few epochs for each method, made at the first use and shared by the tests."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self.images = folder, images
        self.detector, self.short = cache(self._detector), cache(self._short)

    def train(self, name: str, out: str, epochs: int, *, resume: bool = False) -> Model:
        config = small(name)
        return metalad.train(
            self.images, self.folder / out, method=config, epochs=epochs, seed=3, resume=resume, device="cpu"
        )

    def _detector(self, name: str) -> Detector:
        if issubclass(method_named(name).load(), FittedDetector):  # its fit has no epochs
            return stored_detector(self.short(name))
        return stored_detector(self.train(name, name, FEWER_EPOCHS.get(name, EPOCHS)))

    def _short(self, name: str) -> Model:
        return self.train(name, f"{name}-short", SHORT)


def small(name: str) -> DetectorConfig:
    """Return the small settings of a method of this package, or the defaults of another."""
    return SMALL[name] if name in SMALL else method_named(name).load_config()()


def stored_detector(model: Model) -> Detector:
    """Return the detector as it is read from the model file."""
    return read_model(path_of(model)).detector


def path_of(model: Model) -> Path:
    assert model.path is not None
    return model.path


def inferred(detector: Detector, pixels: np.ndarray, scoring: Scoring) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        images = to_batch(pixels)
        return detector.predict(images, detector.residuals(images), scoring)


def new_images(detector: Detector, count: int) -> np.ndarray:
    """Return good images that no run was trained on."""
    return cookies(IMAGES + count, detector.config.image_size)[IMAGES:]


@each_own_method
def test_every_method_of_this_package_is_in_the_tables(name: str) -> None:
    assert name in SMALL
    assert name in PARAMETERS
    assert type(SMALL[name]) is method_named(name).load_config()


@each_own_method
def test_it_has_the_declared_number_of_parameters(name: str) -> None:
    config, expected = PARAMETERS[name]
    detector = method_named(name).load()(config)
    assert sum(tensor.numel() for tensor in detector.parameters()) == expected


@each_method
def test_no_setting_has_the_name_of_an_argument_of_train_or_fit(name: str) -> None:
    """`train(..., **settings)` could not set it."""
    arguments = {*inspect.signature(metalad.train).parameters, *inspect.signature(metalad.fit).parameters}
    settings = {setting.name for setting in metalad.list_methods(name)[0].settings}
    assert {"image_size", "scoring"} <= settings
    assert not settings & (arguments - {"settings"})


@each_method
def test_a_detector_that_was_not_trained_raises(name: str) -> None:
    detector = method_named(name).load()(small(name)).eval()
    images = to_batch(cookies(2, detector.config.image_size))
    with torch.no_grad(), pytest.raises(RuntimeError, match=f"{name} is not (fitted|calibrated)"):
        detector(images)


@each_method
def test_a_detector_without_its_calibration_raises(runs: Runs, name: str) -> None:
    detector = copy.deepcopy(runs.short(name).stored.detector)
    if detector.self_calibrated:
        assert detector.calibration is None
        pytest.skip("its raw map is calibrated already")
    detector.calibration = None
    images = new_images(detector, 1)
    inferred(detector, images, "raw")
    with pytest.raises(RuntimeError, match=f"{name} is not calibrated"):
        inferred(detector, images, "calibrated")


@each_method
@each_scoring
def test_maps_have_the_size_of_the_image_and_are_not_constant(runs: Runs, name: str, scoring: Scoring) -> None:
    detector = runs.detector(name)
    scores, maps = inferred(detector, new_images(detector, 3), scoring)
    assert scores.shape == (3,)
    assert maps.shape == (3, *detector.config.image_size)
    for values in (scores, maps):
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert (values >= 0).all()
    assert (maps.flatten(1).std(1) > 1e-3 * maps.flatten(1).mean(1)).all()


@each_method
@each_scoring
def test_maps_are_higher_at_a_defect(runs: Runs, name: str, scoring: Scoring) -> None:
    """The defect is a quarter of each side, black, white or red; the image without it is compared."""
    detector = runs.detector(name)
    good = new_images(detector, 3)
    height, width = detector.config.image_size
    inside = (slice(None), slice(3 * height // 8, 5 * height // 8), slice(3 * width // 8, 5 * width // 8))
    bad = good.copy()
    bad[inside] = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]], np.uint8)[:, None, None]
    good_maps, bad_maps = (inferred(detector, pixels, scoring)[1] for pixels in (good, bad))
    assert (bad_maps[inside].mean((1, 2)) > good_maps[inside].mean((1, 2))).all()


@each_own_method
def test_guided_smoothing_changes_no_score_and_does_not_exceed_the_maximum(runs: Runs, name: str) -> None:
    detector = runs.detector(name)
    images = to_batch(new_images(detector, 3))
    plain, guided = copy.deepcopy(detector), copy.deepcopy(detector)
    plain.guided_smoothing = None
    guided.guided_smoothing = GuidedSmoothing(*detector.config.image_size, 2.0)
    with torch.inference_mode():
        residuals = detector.residuals(images)
        for scoring in SCORINGS:
            one, other = (each.predict(images, residuals, scoring) for each in (plain, guided))
            assert torch.equal(one.score, other.score)
            assert torch.equal(detector.image_scores(residuals, scoring), other.score)
            assert torch.equal(one.anomaly_map, other.anomaly_map) == (scoring == "raw")
            assert (other.anomaly_map >= 0).all()
            assert (other.anomaly_map.amax((1, 2)) <= one.anomaly_map.amax((1, 2))).all()


@each_method
@each_scoring
def test_results_do_not_depend_on_the_batch(runs: Runs, name: str, scoring: Scoring) -> None:
    detector = runs.detector(name)
    images = new_images(detector, 4)
    together_scores, together = inferred(detector, images, scoring)
    for index in range(len(images)):
        score, alone = inferred(detector, images[index : index + 1], scoring)
        tolerance = BATCH_TOLERANCE * float(alone.max())
        torch.testing.assert_close(together[index], alone[0], rtol=0, atol=tolerance)
        torch.testing.assert_close(together_scores[index], score[0], rtol=BATCH_TOLERANCE, atol=0)


@each_method
def test_a_saved_model_predicts_the_same_bits(runs: Runs, name: str) -> None:
    detector = runs.short(name).stored.detector
    stored = stored_detector(runs.short(name))
    images = new_images(stored, 2)
    for scoring in SCORINGS:
        for one, other in zip(inferred(detector, images, scoring), inferred(stored, images, scoring), strict=True):
            assert torch.equal(one, other)
        assert detector.threshold(0.01, scoring) == stored.threshold(0.01, scoring)


@each_method
def test_the_same_seed_gives_the_same_bits(runs: Runs, name: str) -> None:
    again = runs.train(name, f"{name}-again", SHORT)
    assert path_of(again).read_bytes() == path_of(runs.short(name)).read_bytes()


@each_method
def test_a_run_killed_in_every_stage_and_resumed_gives_the_same_bits(
    runs: Runs, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = runs.short(name)
    if not isinstance(uninterrupted.stored.detector, GradientDetector):
        pytest.skip("a closed form has nothing to resume")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    out, resume = f"{name}-killed", False
    for stage in uninterrupted.header.training["stages"]:
        with monkeypatch.context() as patch:
            patch.setattr(Descent, "_epoch", killed_in(stage, Descent._epoch))
            with pytest.raises(KeyboardInterrupt):
                runs.train(name, out, SHORT, resume=resume)
        resume = True
    resumed = runs.train(name, out, SHORT, resume=True)
    assert path_of(resumed).read_bytes() == path_of(uninterrupted).read_bytes()


def killed_in(stage: str, epoch: Callable[..., Epoch]) -> Callable[..., Epoch]:
    """Return an epoch function that raises KeyboardInterrupt at the second epoch of a stage."""

    def killed(descent: Descent, *args: Any) -> Epoch:
        if descent.plan.stage == stage and descent.state.epoch == 1:
            raise KeyboardInterrupt
        return epoch(descent, *args)

    return killed


@each_method
def test_the_required_number_of_images_is_enough_and_fewer_are_refused(tmp_path: Path, name: str) -> None:
    required = method_named(name).load().required_images()
    for count in range(required):
        images = put_cookies(tmp_path / f"{count}", count)
        with pytest.raises(DataError, match=f"{name} needs at least {required};" if count else "images"):
            metalad.train(images, tmp_path / "run", method=small(name), epochs=1, device="cpu")
        assert not (tmp_path / "run").exists()
    images = put_cookies(tmp_path / "images", required)
    model = metalad.train(images, tmp_path / "run", method=small(name), epochs=1, device="cpu")
    assert np.isfinite(model.threshold)


@each_fitted_method
def test_fitting_shows_a_progress_bar(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    detector = method_named(name).load()(SMALL[name])
    assert isinstance(detector, FittedDetector)
    with bars(shown=True):
        detector.fit(cookies(IMAGES, SMALL[name].image_size), 0)
    assert "%|" in capsys.readouterr().err
