from pathlib import Path

import pytest

import metalad
from tests.exported import exported_onnx


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> metalad.Model:
    """An exported model: the score is the brightness of the brightest pixel, the threshold 0.75."""
    return metalad.load(exported_onnx(tmp_path_factory.mktemp("watch") / "model.onnx"))


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder
