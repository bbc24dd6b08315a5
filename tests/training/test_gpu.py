"""On a GPU: the results of the CPU to a stated tolerance, resumed to go on, and files that need no GPU.

The tolerances are those of docs/train.md: a model judges alike to 1 part in 1000; a training, whose small differences
descent amplifies, ends within 2 % of the same losses.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from metalad.methods.metal import MetalConfig
from metalad.methods.padim import PadimConfig
from metalad.methods.patchcore import PatchCoreConfig
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.predict import predict
from metalad.pipelines.train import train
from metalad.runtime.tasks import WORKER
from metalad.storage.model_file import read_model
from metalad.training import loop as gradient
from metalad.training.device import choose_device
from metalad.training.precision import product_rate
from tests.noise import draw_many, noise_run
from tests.tiny import TINY, tiny_category

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")

SCORE_TOLERANCE = 1e-3
LOSS_TOLERANCE = 0.02


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_category(tmp_path_factory.mktemp("data") / "cookie")


def losses(run: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[row["training_loss"], row["validation_loss"]] for row in rows]


def test_a_model_judges_as_on_the_cpu(tmp_path: Path) -> None:
    run, folder = noise_run(tmp_path / "run"), draw_many(tmp_path / "in", 20)
    here = list(predict(run, [folder], tmp_path / "cpu", device="cpu"))
    there = list(predict(run, [folder], tmp_path / "gpu", device="cuda"))
    scores = [[result.score for result in results] for results in (there, here)]
    np.testing.assert_allclose(np.array(scores[0], float), np.array(scores[1], float), rtol=SCORE_TOLERANCE)
    assert {result.threshold for result in here} == {result.threshold for result in there}


@pytest.mark.parametrize("config", [TINY, PadimConfig(), PatchCoreConfig()], ids=lambda config: type(config).__name__)
def test_training_ends_where_the_cpu_does_in_a_file_that_needs_no_gpu(
    category: Path, tmp_path: Path, config: MetalConfig | PadimConfig | PatchCoreConfig
) -> None:
    epochs = 3 if isinstance(config, MetalConfig) else None
    models = {
        device: train(category, tmp_path / device, method=config, epochs=epochs, device=device, precision="fp32")
        for device in ("cpu", "cuda")
    }
    if epochs:
        np.testing.assert_allclose(losses(tmp_path / "cuda"), losses(tmp_path / "cpu"), rtol=LOSS_TOLERANCE)
    threshold = models["cpu"].threshold()
    assert models["cuda"].threshold() == pytest.approx(threshold, rel=0.1)
    assert all(not tensor.is_cuda for tensor in read_model(tmp_path / "cuda").detector.state_dict().values())
    for device in ("cpu", "cuda"):
        report = evaluate(tmp_path / "cuda", category, out=tmp_path / f"on-{device}", device=device)
        assert report.verdicts


def test_a_stopped_run_goes_on(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "CHECKPOINT_SECONDS", 0.0)
    epoch = gradient.Descent._epoch

    def stopped(descent: gradient.Descent, *arguments: object) -> gradient.Epoch:
        if descent.state.epoch == 2:
            raise KeyboardInterrupt
        return epoch(descent, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(gradient.Descent, "_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(category, tmp_path / "run", method=TINY, epochs=4, device="cuda", precision="fp32")
    train(category, tmp_path / "run", method=TINY, epochs=4, device="cuda", precision="fp32", resume=True)
    train(category, tmp_path / "calm", method=TINY, epochs=4, device="cuda", precision="fp32")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "calm"), rtol=LOSS_TOLERANCE)


def test_processes_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    for place in range(2 * count):
        monkeypatch.setenv(WORKER, str(place))
        assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", place % count)
    assert choose_device(f"cuda:{count - 1}") == torch.device("cuda", count - 1)


def test_the_rate_of_products_counts_only_their_own_time() -> None:
    """A GPU computes while Python goes on: a clock that did not wait would tell of an impossible rate."""
    assert product_rate(torch.float32, "cuda", size=2048) < 1e15
