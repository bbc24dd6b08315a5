import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import metalad
from metalad.data import Images
from metalad.methods import method_named
from metalad.pipelines import schedule
from metalad.pipelines import train as module
from metalad.pipelines.model import Model
from metalad.pipelines.schedule import require_descent
from metalad.pipelines.train import train
from metalad.runtime.errors import ConfigError, DataError, ImageError, RunError
from metalad.storage.model_file import read_model
from metalad.storage.run_folder import RunFolder, RunSettings
from metalad.training.budget import Budget
from metalad.training.loop import Descent, Epoch
from tests.cookies import cookies, put_cookies
from tests.tiny import TINY

FINISHED = {"model.safetensors", "history.jsonl", "run.json", "train.log"}

DRIVER = """
import sys, time
from pathlib import Path
from metalad.pipelines import train as module
from metalad.methods.metal import MetalConfig
from metalad.training import loop

loop.CHECKPOINT_SECONDS = -1.0
module.fastest_precision = lambda device: "fp32"
epoch = loop.Descent._epoch
loop.Descent._epoch = lambda *arguments: (time.sleep(0.03), epoch(*arguments))[1]
config = MetalConfig(image_size=(32, 32), patch_size=8, width=16, hidden_width=32, smoothing_sigma=1.0)
module.train(Path(sys.argv[1]), Path(sys.argv[2]), method=config, epochs=40, device="cpu")
"""


class Killed(BaseException):
    """Stands for a signal: not an `Exception`, so nothing catches it."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_cookies(tmp_path_factory.mktemp("data") / "cookie", 12)


@pytest.fixture(autouse=True)
def _fixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured precision depends on the load of the machine, and the bits of a run depend on the precision."""
    monkeypatch.setattr(module, "fastest_precision", lambda device: "fp32")  # noqa: ARG005
    monkeypatch.setattr("metalad.training.loop.CHECKPOINT_SECONDS", -1.0)


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fastest_precision", lambda device: "fp32")  # noqa: ARG005
        run(data, out)
    return out


def run(data: Path, out: Path, *, epochs: int | None = 3, resume: bool = False, seed: int = 0) -> Model:
    return train(data, out, method=TINY, epochs=epochs, seed=seed, resume=resume, device="cpu")


def interrupt(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *, after: int = 2, epochs: int = 3) -> None:
    """Start a run that is killed after `after` epochs."""
    whole = Descent._epoch

    def epoch(descent: Descent, *arguments: object) -> Epoch:
        if descent.state.epoch == after:
            raise Killed
        return whole(descent, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Descent, "_epoch", epoch)
        with pytest.raises(Killed):
            run(data, out, epochs=epochs)


def killed(*_: object) -> None:
    raise Killed


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_folder_contains_model_history_settings_and_log(finished: Path) -> None:
    assert names(finished) == FINISHED
    rows = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(math.isfinite(row["training_loss"]) and math.isfinite(row["validation_loss"]) for row in rows)
    log = (finished / "train.log").read_text()
    assert "11 good images to train on, 1 to validate on" in log
    assert "train: selected epoch" in log
    assert "calibrated by" in log


def test_the_header_describes_the_training(finished: Path) -> None:
    model = read_model(finished)
    header = model.header
    assert (header.method, header.category, header.seed, header.protocol) == ("metal", "cookie", 0, "default")
    assert header.config == json.loads(json.dumps(dataclasses.asdict(TINY)))
    assert header.images == {"training": 11, "validation": 1, "skipped": 0}
    assert (
        header.training["stages"]["train"]["max_epochs"],
        header.training["precision"],
        header.training["device"],
    ) == (
        3,
        "fp32",
        "cpu",
    )
    assert set(header.versions) == {"python", "metalad", "torch", "numpy"}
    assert len(header.training_hash) == 64
    for scoring, threshold in header.thresholds.items():
        assert scoring in ("calibrated", "raw")
        assert 0 < threshold == model.detector.threshold(header.false_alarms, scoring)  # type: ignore[arg-type]


def test_training_returns_the_model_that_it_wrote(data: Path, tmp_path: Path) -> None:
    returned = run(data, tmp_path / "run")
    stored, images = read_model(tmp_path / "run"), torch.rand(2, 3, 32, 32)
    assert not returned.stored.detector.training
    assert returned.path == stored.path
    with torch.no_grad():
        assert torch.equal(returned.stored.detector(images).score, stored.detector(images).score)


def test_the_same_seed_gives_the_same_bytes(data: Path, finished: Path, tmp_path: Path) -> None:
    copied = tmp_path / "moved" / "cookie"
    shutil.copytree(data, copied)
    torch.manual_seed(99)  # the global random state must not matter
    run(copied, tmp_path / "same")
    run(data, tmp_path / "other", seed=1)
    same, other, first = (folder / "model.safetensors" for folder in (tmp_path / "same", tmp_path / "other", finished))
    assert same.read_bytes() == first.read_bytes()
    assert not torch.equal(
        read_model(other).detector.state_dict()["decoder.0.weight"],
        read_model(first).detector.state_dict()["decoder.0.weight"],
    )


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_run_is_resumed_to_the_same_bytes(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    interrupt(data, tmp_path, monkeypatch, after=after)
    assert "model.safetensors" not in names(tmp_path)
    run(data, tmp_path, resume=True)
    assert names(tmp_path) == FINISHED
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3


def test_a_run_interrupted_in_calibration_is_resumed_to_the_same_bytes(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "calibrate", killed)
        with pytest.raises(Killed):
            run(data, tmp_path)
    run(data, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_process_killed_at_any_moment_is_resumed_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "whole", epochs=40)
    out = tmp_path / "killed"
    source = str(Path(metalad.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", DRIVER, str(data), str(out)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        while not (out / "checkpoint.safetensors").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.002)
        time.sleep(0.5 * random.random())
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    done = len((out / "history.jsonl").read_text().splitlines())
    run(data, out, epochs=40, resume=True)
    message = f"killed after {done} epochs"
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes(), message


def test_a_run_is_never_overwritten(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="already holds a run; continue it with --resume"):
        run(data, finished)
    assert (finished / "model.safetensors").read_bytes() == before
    interrupt(data, tmp_path, monkeypatch)
    with pytest.raises(RunError, match="already holds a run"):
        run(data, tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match="already holds a run"):
        run(data, tmp_path)


def test_resuming_a_finished_run_changes_nothing(data: Path, finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.name != "train.log"}
    model = run(data, finished, resume=True)
    assert model.header.seed == 0
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.name != "train.log"} == before


def test_resuming_in_an_empty_folder_starts_a_run(data: Path, finished: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "new", resume=True)
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


@pytest.mark.parametrize("state", ["interrupted", "finished"])
@pytest.mark.parametrize("change", ["seed", "config", "protocol", "false_alarms", "epochs"])
def test_a_run_is_not_resumed_with_other_settings(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, state: str
) -> None:
    if state == "interrupted":
        interrupt(data, tmp_path, monkeypatch)
    out = finished if state == "finished" else tmp_path
    config = dataclasses.replace(TINY, depth=2) if change == "config" else TINY
    named = {"config": "depth 1, now it is 2"}.get(change, change)
    with pytest.raises(RunError, match=f"was started with ({named})"):
        train(
            data,
            out,
            method=config,
            seed=int(change == "seed"),
            protocol="paper" if change == "protocol" else "default",
            false_alarms=0.1 if change == "false_alarms" else 0.01,
            epochs=4 if change == "epochs" else 3,
            resume=True,
            device="cpu",
        )


def test_a_run_of_another_method_is_not_resumed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(data, tmp_path, monkeypatch)
    stored = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**stored, "method": "alchemy"}))
    with pytest.raises(RunError, match='was started with method "alchemy", now it is "metal"'):
        run(data, tmp_path, resume=True)


def test_a_run_on_other_images_is_not_resumed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "data" / "cookie"
    shutil.copytree(data, images)
    interrupt(images, tmp_path / "run", monkeypatch)
    shutil.copy(images / "000.png", images / "999.png")
    with pytest.raises(RunError, match="was started with"):
        run(images, tmp_path / "run", resume=True)


def test_a_finished_run_on_other_images_is_not_resumed(data: Path, finished: Path, tmp_path: Path) -> None:
    images = shutil.copytree(data, tmp_path / "cookie")
    shutil.copy(images / "000.png", images / "999.png")
    with pytest.raises(RunError, match="was started with training_hash"):
        run(images, finished, resume=True)
    with pytest.raises(DataError, match="no folder"):
        run(tmp_path / "nowhere", finished, resume=True)


def test_the_error_on_resuming_names_the_differing_setting(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(data, tmp_path, monkeypatch)
    with pytest.raises(RunError, match=r"started with epochs \d+, now it is 77"):
        run(data, tmp_path, resume=True, epochs=77)


def test_a_name_that_is_not_utf_8_is_logged_with_escapes(data: Path, tmp_path: Path) -> None:
    images = shutil.copytree(data, tmp_path / "cookie")
    try:
        (images / "part\udcff\x1b.png").write_text("no image")
    except OSError:
        pytest.skip("this file system takes no such name")
    run(images, tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "skipped" in log
    assert "\\udcff?" in log


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"method": "metal"}'])
def test_a_damaged_run_file_is_named(data: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json is damaged; train again in another folder"):
        run(data, tmp_path, resume=True)


def measured(monkeypatch: pytest.MonkeyPatch, epoch: float, besides: float) -> None:
    """Let an epoch and the rest of the training seem to take so many seconds, and the clock stand still."""
    monkeypatch.setattr(schedule, "epoch_seconds", lambda *_: epoch)
    monkeypatch.setattr(schedule, "seconds_besides_descent", lambda *_: besides)
    monkeypatch.setattr(module, "Budget", lambda minutes: Budget(minutes, lambda: 0.0))


def test_minutes_shorten_the_schedule(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def epochs(minutes: float, epochs: int | None = None) -> int:
        out = tmp_path / f"{minutes}"
        header = train(data, out, method=TINY, minutes=minutes, epochs=epochs, device="cpu").header
        return int(header.training["stages"]["train"]["max_epochs"])

    measured(monkeypatch, 0.6, 1.0)
    assert epochs(0.06) == 4  # (3.6 - 1) / 0.6 = 4.3
    assert epochs(0.0267) == 1
    assert epochs(9e9, 2) == 2
    with pytest.raises(ConfigError, match=r"minutes is 0\.02, but loading, one epoch .* take about 0\.027; allow more"):
        epochs(0.02)
    assert names(tmp_path / "0.02") == {"train.log"}


def test_minutes_are_refused_for_a_method_without_descent(data: Path, tmp_path: Path) -> None:
    for name in ("metal_features", "variation_model"):
        with pytest.raises(ConfigError, match=f"{name} is fitted in one pass, without gradient descent that minutes"):
            train(data, tmp_path / "run", method=name, minutes=3.0)
    assert not (tmp_path / "run").exists()


def test_without_training_images_the_error_names_the_folders_that_are_not_used(tmp_path: Path) -> None:
    put_cookies(tmp_path / "good", 4)
    put_cookies(tmp_path / "test/good", 1)
    line = rf"found 0 good images \(4 images not used, in {tmp_path / 'good'}\), but variation_model needs at least 3"
    with pytest.raises(DataError, match=line):
        train(tmp_path, tmp_path / "run", method="variation_model")


def test_epochs_without_effect_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for name, is_warned in (("variation_model", True), ("metal", False)):
        caplog.clear()
        require_descent(method_named(name).load(), name, 3, None)
        line = f"epochs have no effect: {name} is fitted in one pass, without gradient descent"
        assert (line in caplog.messages) == is_warned


def test_a_run_limited_by_minutes_keeps_its_length_when_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 0.6, 1.0)
    train(data, tmp_path / "whole", method=TINY, minutes=0.06, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(module, "calibrate", killed)
        with pytest.raises(Killed):
            train(data, tmp_path / "interrupted", method=TINY, minutes=0.06, device="cpu")
    measured(monkeypatch, 6.0, 1.0)
    train(data, tmp_path / "interrupted", method=TINY, minutes=0.06, resume=True, device="cpu")
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "interrupted"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_measuring_changes_no_bit_of_the_model(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "unlimited", method=TINY, epochs=3, device="cpu")
    train(data, tmp_path / "limited", method=TINY, epochs=3, minutes=100.0, device="cpu")
    unlimited, limited = (tmp_path / name / "model.safetensors" for name in ("unlimited", "limited"))
    assert unlimited.read_bytes() == limited.read_bytes()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_images_give_a_model_with_a_threshold(tmp_path: Path, count: int) -> None:
    model = run(put_cookies(tmp_path / "few", count), tmp_path / "run", epochs=30)
    assert all(0 < threshold < math.inf for threshold in model.header.thresholds.values())


def test_an_unreadable_image_is_skipped_logged_and_counted_unless_strict(data: Path, tmp_path: Path) -> None:
    images = tmp_path / "cookie"
    shutil.copytree(data, images)
    (images / "page.png").write_text("not an image")
    model = run(images, tmp_path / "run")
    assert model.header.images["skipped"] == 1
    assert model.header.images["training"] + model.header.images["validation"] == 12
    assert "page.png" in (tmp_path / "run" / "train.log").read_text()
    with pytest.raises(ImageError, match=r"page\.png"):
        train(images, tmp_path / "strict", method=TINY, epochs=1, strict=True, device="cpu")


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_an_error_and_nothing_is_written(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError):
        run(put_cookies(tmp_path / "few", count), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_a_file_is_an_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="cannot write"):
            run(data, out)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_run_folder_without_permission_is_an_error(data: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="no permission; choose a folder that you may write"):
        run(data, tmp_path / "run")
    tmp_path.chmod(0o700)


def test_the_run_folder_is_checked_before_images_are_decoded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: object, **__: object) -> Images:
        raise AssertionError("decoded first")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "load_images", decoded)
    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(RunError, match="no permission; choose a folder that you may write"):
        run(data, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"minutes": 0.0}, "minutes is 0"),
        ({"minutes": math.nan}, "minutes is nan"),
        ({"minutes": math.inf}, "minutes is inf"),
        ({"false_alarms": 0.0}, "false_alarms is 0"),
        ({"false_alarms": math.nan}, "false_alarms is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"method": "alchemy"}, "no method 'alchemy'; there are: metal"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_an_impossible_setting_is_an_error(
    data: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "run", **{"method": TINY, "device": "cpu", **changes})  # type: ignore[arg-type]


def test_a_given_precision_is_not_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fastest_precision", lambda _: pytest.fail("it was measured"))
    model = train(data, tmp_path / "run", method=TINY, epochs=1, device="cpu", precision="bf16")
    assert model.header.training["precision"] == json.loads((tmp_path / "run" / "run.json").read_text())["precision"]
    assert model.header.training["precision"] == "bf16"


def test_a_closed_form_method_ignores_the_precision(data: Path, tmp_path: Path) -> None:
    model = train(data, tmp_path / "run", method="variation_model", device="cpu", precision="bf16")
    assert model.header.training["precision"] == "fp32"


def test_the_largest_seed_is_accepted(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "run", epochs=1, seed=2**63 - 1).header.seed == 2**63 - 1


def test_good_images_score_less_than_the_threshold(data: Path, finished: Path) -> None:
    """Of twelve images at a false-alarm rate of 1 %, none should be anomalous."""
    model = read_model(finished)
    del data
    scores = model.detector(torch.from_numpy(np.moveaxis(cookies(12), -1, 1).copy()).float() / 255).score
    assert (scores < model.threshold()).all()


def test_a_refused_training_does_not_block_its_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DataError("these images cannot be used")

    for function in ("select_precision", "fit_detector", "calibrate"):
        with monkeypatch.context() as patch:
            patch.setattr("metalad.training.loop.CHECKPOINT_SECONDS", 60.0)
            patch.setattr(module, function, refuse)
            with pytest.raises(DataError, match="cannot be used"):
                run(data, tmp_path, seed=1)
        assert names(tmp_path) == {"train.log"}
    run(data, tmp_path)
    assert names(tmp_path) == FINISHED


def test_a_run_without_a_checkpoint_is_started_again(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("metalad.training.loop.CHECKPOINT_SECONDS", 60.0)
        patch.setattr(module, "calibrate", killed)
        with pytest.raises(Killed):
            run(data, tmp_path, seed=1)
    assert "run.json" in names(tmp_path)
    run(data, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_two_trainings_do_not_share_a_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []

    def second(*_: object) -> None:
        for resume in (False, True):
            with pytest.raises(RunError) as caught:
                run(data, tmp_path, resume=resume)
            refused.append(str(caught.value))

    class Folder(RunFolder):
        def record(self, settings: RunSettings) -> None:
            super().record(settings)
            second()

    monkeypatch.setattr(module, "RunFolder", Folder)
    run(data, tmp_path)
    assert len(refused) == 2
    assert all(f"held by another train (process {os.getpid()} on" in line for line in refused)
    assert names(tmp_path) == FINISHED
