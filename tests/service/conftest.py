"""A model that is fitted in a moment, for all tests of the service."""

import pytest

import metalad
from tests.service.pictures import picture


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> metalad.Model:
    images = [picture(seed) for seed in range(30)]
    fitted = metalad.fit(images, method="variation_model", image_size=(48, 64))
    fitted.save(tmp_path_factory.mktemp("tiny") / "model.safetensors")
    return fitted
