"""Loading a trained model from a run folder or a model file."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from metalad.pipelines.load import load
from metalad.pipelines.model import Model
from metalad.pipelines.train import train
from metalad.runtime.errors import ConfigError, ModelFileError
from tests.cookies import put_cookies
from tests.tiny import TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("load")
    return train(put_cookies(folder / "cookie", 4), folder / "run", method=TINY, epochs=1, device="cpu")


def test_a_run_folder_and_a_model_file_give_the_trained_model(trained: Model) -> None:
    assert trained.path is not None
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    expected = trained.predict(image)
    for path in (trained.path, str(trained.path), trained.path.parent, str(trained.path.parent)):
        model = load(path, device="cpu")
        assert isinstance(model, Model)
        assert (model.path, model.header, model.threshold) == (trained.path, trained.header, trained.threshold)
        assert not model.stored.detector.training
        result = model.predict(image)
        assert result.score == expected.score
        np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)


def test_a_missing_damaged_or_foreign_file_is_an_error(trained: Model, tmp_path: Path) -> None:
    assert trained.path is not None
    with pytest.raises(ModelFileError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        load(tmp_path)
    damaged = Path(shutil.copy(trained.path, tmp_path / "damaged.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"damaged\.safetensors"):
        load(damaged)
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelFileError, match=r"pickle\.pt"):
        load(tmp_path / "pickle.pt")


def test_an_unknown_device_is_an_error(trained: Model) -> None:
    assert trained.path is not None
    with pytest.raises(ConfigError, match="no device 'abacus'"):
        load(trained.path, device="abacus")
