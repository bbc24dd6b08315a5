"""The examples: a method in a package of its own, and training runs that are logged to TensorBoard and MLflow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import metalad
from metalad.data.images import find_images, read_image, resize_image, write_image
from tests.tiny import tiny_category

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EXAMPLE = EXAMPLES / "metalad-nearest-image"
EPOCHS = 2


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, which is built from a copy, without a network, by the locked backend."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")],
        check=True,
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
    )
    return folder / "site"


def run(installed: Path, *arguments: str) -> str:
    paths = (str(installed), str(Path(metalad.__file__).parents[1]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, cwd=installed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_metalad_lists_the_method_with_its_package(installed: Path) -> None:
    (line,) = [line for line in run(installed, "metalad", "methods").splitlines() if "nearest_image" in line]
    assert "from the package metalad-nearest-image" in line


def test_the_tests_of_the_example_pass(installed: Path) -> None:
    out = run(installed, "pytest", "-W", "error", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
    assert "2 passed" in out


def test_the_method_is_not_listed_without_its_package() -> None:
    done = subprocess.run([sys.executable, "-m", "metalad", "methods"], capture_output=True, text=True, check=True)
    assert "nearest_image" not in done.stdout


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images: the examples train a large network at a size that follows from the images."""
    data = tiny_category(tmp_path_factory.mktemp("category") / "cookie", train=6, good=0, defective=0)
    for path in find_images(data):
        write_image(path.with_suffix(".png"), resize_image(read_image(path), (48, 48)))
        path.unlink()
    return data


def run_example(script: str, *arguments: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments), "--epochs", str(EPOCHS)]
    done = subprocess.run(command, cwd=arguments[-1].parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def expected_losses(run_folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Step and value of each loss in the run's history: with few images, an epoch is one step."""
    epochs = [json.loads(line) for line in (run_folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(epochs) == EPOCHS
    losses = [(epoch["epoch"], pytest.approx(epoch["training_loss"], rel=1e-6)) for epoch in epochs]
    # A step receives the validation loss of the epoch before.
    validation = [(epoch["epoch"] + 1, pytest.approx(epoch["validation_loss"], rel=1e-6)) for epoch in epochs[:-1]]
    return {"train/loss": losses, "train/validation_loss": validation}


def test_losses_are_logged_to_tensorboard(category: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    run_example("tensorboard_logging.py", category, tmp_path / "out")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    logged = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert logged == expected_losses(tmp_path / "out" / "run")


def test_losses_are_logged_to_mlflow(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder needs neither a server nor SQLAlchemy
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    run_example("mlflow_logging.py", category, tmp_path / "out")
    from mlflow import MlflowClient  # reads the environment variables when it is imported

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("metalad")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("out", "FINISHED")
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    logged = {name: [(metric.step, metric.value) for metric in history] for name, history in histories.items()}
    assert logged == expected_losses(tmp_path / "out")
