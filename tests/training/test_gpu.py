"""Training and inference on a GPU: agreement with the CPU, resumption, and model files that need no GPU.

The tolerances are those of docs/train.md: scores agree to 1 part in 1000. Training amplifies small differences: its
losses agree to 2 %.
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
from metalad.training import loop
from metalad.training.device import choose_device
from metalad.training.precision import product_rate
from tests.noise import draw_many, noise_run
from tests.tiny import TINY, tiny_category

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no usable GPU")

SCORE_TOLERANCE = 1e-3
LOSS_TOLERANCE = 0.02


@pytest.fixture(autouse=True)
def _release_gpu_memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_category(tmp_path_factory.mktemp("data") / "cookie")


def losses(run: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[row["training_loss"], row["validation_loss"]] for row in rows]


def test_scores_agree_with_the_cpu(tmp_path: Path) -> None:
    run, folder = noise_run(tmp_path / "run"), draw_many(tmp_path / "in", 20)
    cpu = list(predict(run, [folder], tmp_path / "cpu", device="cpu"))
    gpu = list(predict(run, [folder], tmp_path / "gpu", device="cuda"))
    scores = [[result.score for result in results] for results in (gpu, cpu)]
    np.testing.assert_allclose(np.array(scores[0], float), np.array(scores[1], float), rtol=SCORE_TOLERANCE)
    assert {result.threshold for result in cpu} == {result.threshold for result in gpu}


@pytest.mark.parametrize("config", [TINY, PadimConfig(), PatchCoreConfig()], ids=lambda config: type(config).__name__)
def test_training_agrees_with_the_cpu_and_the_model_needs_no_gpu(
    category: Path, tmp_path: Path, config: MetalConfig | PadimConfig | PatchCoreConfig
) -> None:
    epochs = 3 if isinstance(config, MetalConfig) else None
    models = {
        device: train(category, tmp_path / device, method=config, epochs=epochs, device=device, precision="fp32")
        for device in ("cpu", "cuda")
    }
    if epochs:
        np.testing.assert_allclose(losses(tmp_path / "cuda"), losses(tmp_path / "cpu"), rtol=LOSS_TOLERANCE)
    threshold = models["cpu"].threshold
    assert models["cuda"].threshold == pytest.approx(threshold, rel=0.1)
    assert all(not tensor.is_cuda for tensor in read_model(tmp_path / "cuda").detector.state_dict().values())
    for device in ("cpu", "cuda"):
        report = evaluate(tmp_path / "cuda", category, out=tmp_path / f"on-{device}", device=device)
        assert report.images


def test_interrupted_run_is_resumed(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    epoch = loop.Descent._epoch

    def interrupted(descent: loop.Descent, *arguments: object) -> loop.Epoch:
        if descent.state.epoch == 2:
            raise KeyboardInterrupt
        return epoch(descent, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(loop.Descent, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(category, tmp_path / "run", method=TINY, epochs=4, device="cuda", precision="fp32")
    train(category, tmp_path / "run", method=TINY, epochs=4, device="cuda", precision="fp32", resume=True)
    train(category, tmp_path / "uninterrupted", method=TINY, epochs=4, device="cuda", precision="fp32")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "uninterrupted"), rtol=LOSS_TOLERANCE)


def test_worker_processes_are_distributed_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    for number in range(2 * count):
        monkeypatch.setenv(WORKER, str(number))
        assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", number % count)
    assert choose_device(f"cuda:{count - 1}") == torch.device("cuda", count - 1)


def test_product_rate_waits_for_the_gpu() -> None:
    """GPU kernels run asynchronously: without synchronization the measured rate would be impossibly high."""
    assert product_rate(torch.float32, "cuda", size=2048) < 1e15
