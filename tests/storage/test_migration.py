"""Files of format 4, written by metalad 0.1: the same scores and thresholds, and a new name for each old one.

The folder format4 holds run folders of metalad 0.1 with the scores that it computed for the cookie test images, in
batches of 16, and, for every method, the names of the settings and tensors in its model file. The model file of
metal_features lacks the tensors of its backbone, which are those of the installed weights package.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import metalad
from metalad.data.images import find_images
from metalad.detectors.base import SCORINGS, Detector, Scoring
from metalad.detectors.calibration import Calibration
from metalad.inference.model import FORMAT
from metalad.methods import OWN, method_named
from metalad.methods.metal import MetalConfig
from metalad.methods.metal_features import MetalFeatures, MetalFeaturesConfig
from metalad.nn.fitted import unfitted
from metalad.runtime.errors import ModelFileError, RunError
from metalad.runtime.settings import from_json
from metalad.storage import migration, model_file
from metalad.storage.migration import complete_settings, migrate_header, migrate_settings, migrate_tensors
from metalad.storage.model_file import FILE_NAME, read_model
from metalad.storage.run_folder import RunFolder
from tests.cookies import cookies
from tests.tiny import COOKIES

FOLDER = Path(__file__).parent / "format4"
NAMES: dict[str, dict[str, Any]] = json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))
SCORE_TOLERANCE = 1e-5
"""Relative. On the CPU that wrote the files, scores agree in every bit; with its vector instructions disabled, they
differ by up to 2.2e-6."""
METHODS = ("metal", "metal_features", "variation_model")
RUNS = ("metal", "variation_model")

CONTEXT = {"context_weight", "context_scale", "context_log_distance.mean", "context_log_distance.scale"}
ADDED = {"metal_features": CONTEXT}
"""Tensors that older versions did not have, by method; they are computed from those of the file."""

each_method = pytest.mark.parametrize("name", NAMES)


def stored_files(file: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return metadata and tensors of a safetensors file."""
    with safe_open(file, framework="pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def complete_metal_features(file: Path) -> None:
    """Write the model file with the tensors of the backbone; its checksum is that of metalad 0.1."""
    metadata, tensors = stored_files(FOLDER / "metal_features" / "model_without_backbone.safetensors")
    detector = MetalFeatures(MetalFeaturesConfig(image_size=(48, 64)))
    detector.backbone.load()
    backbone = {f"backbone.{name}": tensor for name, tensor in detector.backbone.state_dict().items()}
    save_file(tensors | backbone, file, metadata)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run folder for each of the methods."""
    folder = tmp_path_factory.mktemp("runs")
    for name in METHODS:
        shutil.copytree(FOLDER / name, folder / name)
    complete_metal_features(folder / "metal_features" / FILE_NAME)
    return folder


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("name", METHODS)
def test_scores_and_thresholds_are_those_of_metalad_0_1(runs: Path, name: str, scoring: Scoring) -> None:
    expected = json.loads((FOLDER / name / "scores.json").read_text(encoding="utf-8"))[scoring]
    model = metalad.load(runs / name)
    paths = find_images(COOKIES / "test")
    results = model.predict(COOKIES / "test", scoring=scoring, batch_size=16)
    assert [path.relative_to(COOKIES).as_posix() for path in paths] == list(expected["scores"])
    assert [result.path for result in results] == paths
    scores = [result.score for result in results]
    assert scores == pytest.approx(list(expected["scores"].values()), rel=SCORE_TOLERANCE)
    assert {result.threshold for result in results} == {model.threshold_for(0.05, scoring)}
    assert results[0].threshold == pytest.approx(expected["threshold"], rel=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_the_header_of_a_read_model_keeps_its_format_and_has_new_names(runs: Path, name: str) -> None:
    old = json.loads(stored_files(runs / name / FILE_NAME)[0]["metalad"])
    header = read_model(runs / name).header
    assert (old["format"], header.method, header.seed) == (4, name, old["seed"])
    assert header.config == complete_settings(name, migrate_settings(name, old["config"])) != old["config"]
    assert header.config.get("selection") == {"metal": "k-means", "metal_features": "k-means"}.get(name)
    added: dict[str, dict[str, Any]] = {
        "metal": {"composition": False, "high_pass": False, "reconstruction_errors": "joint"},
        "metal_features": {
            "composition": False,
            "positional_mean": False,
            "context_components": 16,
            "context_sigma": 0.0,
            "context_in_score": True,
        },
    }
    for setting in set().union(*added.values()):
        assert header.config.get(setting) == added.get(name, {}).get(setting)
    assert header.thresholds == old["thresholds"]


def test_a_saved_model_of_format_4_becomes_one_of_format_5(runs: Path, tmp_path: Path) -> None:
    model = metalad.load(runs / "metal_features")
    file = model.save(tmp_path / FILE_NAME)
    metadata, tensors = stored_files(file)
    assert not [name for name in tensors if name.startswith("calibration.")]
    again = metalad.load(file)
    image = find_images(COOKIES / "test")[0]
    assert again.predict(image).score == model.predict(image).score
    assert again.threshold == model.threshold
    assert json.loads(metadata["metalad"])["config"] == json.loads(json.dumps(again.settings))


def test_an_altered_file_of_format_4_is_refused(runs: Path, tmp_path: Path) -> None:
    content = bytearray((runs / "variation_model" / FILE_NAME).read_bytes())
    content[-1] ^= 1
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ModelFileError, match="checksum differs"):
        read_model(tmp_path)


@pytest.mark.parametrize("number", [migration.OLDEST_FORMAT - 1, FORMAT + 1])
def test_other_formats_are_refused(runs: Path, tmp_path: Path, number: int) -> None:
    metadata, tensors = stored_files(runs / "variation_model" / FILE_NAME)
    text = metadata["metalad"].replace('"format": 4', f'"format": {number}')
    save_file(tensors, tmp_path / FILE_NAME, metadata | {"metalad": text})
    with pytest.raises(ModelFileError, match=f"has format {number}, this metalad reads 4 to {FORMAT}"):
        read_model(tmp_path)


def test_a_model_from_before_context_prediction_chosen_by_the_images_is_read(tmp_path: Path) -> None:
    config = MetalFeaturesConfig(image_size=(64, 96), smoothing_sigma=2.0, codebook_size=64, context_steps=0)
    model = metalad.fit(list(cookies(8, (64, 96))), method=config)
    file = model.save(tmp_path / FILE_NAME)
    metadata, tensors = stored_files(file)
    header = json.loads(metadata["metalad"])
    for setting in ("context_components", "context_sigma", "context_in_score"):
        del header["config"][setting]
    text = json.dumps(header, sort_keys=True)
    old = {name: tensor for name, tensor in tensors.items() if name not in CONTEXT}
    assert len(old) == len(tensors) - len(CONTEXT)
    save_file(old, file, {"metalad": text, "sha256": model_file._digest(text, old)})
    again = metalad.load(file)
    image = cookies(9, (64, 96))[8]
    assert again.predict(image).score == model.predict(image).score
    assert (again.settings["context_components"], again.settings["context_in_score"]) == (16, True)


@pytest.mark.parametrize("names", [["x"], ["density_weights"], ["density_weights", "log_distance.mean"]])
def test_tensors_of_another_method_are_named_as_such(tmp_path: Path, names: list[str]) -> None:
    config = MetalFeaturesConfig(image_size=(64, 96), smoothing_sigma=2.0, codebook_size=64)
    file = metalad.fit(list(cookies(8, (64, 96))), method=config).save(tmp_path / FILE_NAME)
    metadata, tensors = stored_files(file)
    few = {name: tensors.get(name, tensors["density_weights"]) for name in names}
    save_file(few, file, metadata | {"sha256": model_file._digest(metadata["metalad"], few)})
    with pytest.raises(ModelFileError, match="its tensors are not those of metal_features"):
        read_model(file)


def test_a_metal_model_without_the_settings_of_today_has_one_distance_of_the_residuals(tmp_path: Path) -> None:
    """Models that were written before the residuals had a distance each lack three settings."""
    older: dict[str, Any] = {"reconstruction_errors": "joint", "high_pass": False, "composition": False}
    config = MetalConfig(image_size=(32, 32), reduction=1, width=8, hidden_width=16, smoothing_sigma=1.0, **older)
    images = list(cookies(8, (32, 32)))
    model = metalad.fit(images, method=config, epochs=1)
    file = model.save(tmp_path / FILE_NAME)
    metadata, tensors = stored_files(file)
    header = json.loads(metadata["metalad"])
    header["config"] = {name: value for name, value in header["config"].items() if name not in older}
    text = json.dumps(header, sort_keys=True)
    save_file(tensors, file, {"metalad": text, "sha256": model_file._digest(text, tensors)})
    again = metalad.load(file)
    assert again.settings.items() >= older.items()
    assert [again.predict(image).score for image in images] == [model.predict(image).score for image in images]


# Run folders


@pytest.mark.parametrize("name", RUNS)
def test_the_settings_of_a_run_folder_have_new_names(name: str) -> None:
    old = json.loads((FOLDER / name / "run.json").read_text(encoding="utf-8"))
    stored = RunFolder(FOLDER / name).stored()
    assert stored is not None
    assert stored.config == complete_settings(name, migrate_settings(name, old["config"])) != old["config"]
    assert (stored.method, stored.plan, stored.training_hash) == (name, old["plan"], old["training_hash"])


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_of_metalad_0_1_can_be_resumed(tmp_path: Path, name: str) -> None:
    run = shutil.copytree(FOLDER / name, tmp_path / "run")
    config = from_json(method_named(name).load_config(), migrate_settings(name, NAMES[name]["config"]))
    if name == "metal":
        config = from_json(type(config), read_model(run).header.config)
    given: dict[str, Any] = {"method": config, "false_alarms": 0.05, "resume": True, "device": "cpu"}
    model = metalad.train(COOKIES / "train/good", run, **given)
    expected = json.loads((FOLDER / name / "scores.json").read_text(encoding="utf-8"))
    assert model.threshold == pytest.approx(expected["calibrated"]["threshold"], rel=1e-12)
    with pytest.raises(RunError, match="was started with smoothing_sigma"):
        metalad.train(COOKIES / "train/good", run, **given, smoothing_sigma=1.5)


# Names


def current_names(name: str) -> set[str]:
    """Return the names of the tensors that a model file of today has for the settings in names.json."""
    header = migrate_header({"method": name, "config": NAMES[name]["config"], "calibration": {"kind": kind_of(name)}})
    method = method_named(name)
    config = from_json(method.load_config(), complete_settings(name, header["config"]))
    detector: Detector = method.load()(config)
    kind = header["calibration"]["kind"]
    if kind != "own":
        joined = any(key.startswith("calibration.surprise.") for key in NAMES[name]["tensors"])
        detector.calibration = Calibration.unfitted(kind, detector.config.residual_size, 2 if joined else 1)
    names = {*detector.state_dict(), *unfitted(detector)}
    return {key for key in names if not key.startswith("backbone.")}


def kind_of(name: str) -> str:
    return str(NAMES[name]["calibration"])


def test_every_method_of_format_4_is_a_method_of_today() -> None:
    assert len(NAMES) == 20
    assert set(NAMES) <= {method.name for method in OWN}


@each_method
def test_every_setting_of_format_4_is_a_setting_of_today(name: str) -> None:
    migrated = migrate_settings(name, NAMES[name]["config"])
    config = from_json(method_named(name).load_config(), migrated)
    today = json.loads(json.dumps(vars(config)))
    assert {key: today[key] for key in migrated} == migrated


@each_method
def test_every_tensor_of_format_4_is_a_tensor_of_today(name: str) -> None:
    migrated = migrate_tensors(name, {key: key for key in NAMES[name]["tensors"]})
    assert set(migrated) | ADDED.get(name, set()) == current_names(name)


@pytest.mark.parametrize(
    ("name", "old"), [(name, old) for name, renamed in migration.SETTINGS.items() for old in renamed]
)
def test_every_renamed_setting_is_in_a_file_of_format_4(name: str, old: str) -> None:
    assert old in NAMES[name]["config"]
    assert migrate_settings(name, {old: 3}) == {migration.SETTINGS[name][old]: 3}
    assert migrate_settings("padim", {old: 3}) == {old: 3}


@pytest.mark.parametrize("name", migration.TENSORS)
def test_every_pattern_of_tensor_names_matches_a_file_of_format_4(name: str) -> None:
    """A pattern that is left out leaves an old name unchanged."""
    complete = set(migrate_tensors(name, dict.fromkeys(NAMES[name]["tensors"])))
    for pattern in migration.TENSORS[name]:
        fewer = {name: tuple(other for other in migration.TENSORS[name] if other != pattern)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(migration, "TENSORS", fewer)
            assert set(migrate_tensors(name, dict.fromkeys(NAMES[name]["tensors"]))) != complete, pattern


def test_every_shared_pattern_matches_a_file_of_format_4() -> None:
    old = [f"calibration.surprise.{leaf}" for leaf in ("usual", "reach")]
    assert set(old) <= set(NAMES["metal"]["tensors"])
    assert list(migrate_tensors("anything", dict.fromkeys(old))) == [
        "calibration.log_distance.mean",
        "calibration.log_distance.scale",
    ]
    assert len(migration.SHARED_TENSORS) == len(old)


@pytest.mark.parametrize("name", migration.SELF_CALIBRATED)
def test_the_unused_calibration_of_a_self_calibrated_method_is_dropped(name: str) -> None:
    unused = [key for key in NAMES[name]["tensors"] if key.startswith("calibration.")]
    assert unused
    assert migrate_tensors(name, dict.fromkeys(unused)) == {}
    header = migrate_header({"method": name, "config": {}, "calibration": {"kind": kind_of(name)}})
    assert (kind_of(name), header["calibration"]["kind"]) == ("position", "own")
    assert method_named(name).load().self_calibrated
