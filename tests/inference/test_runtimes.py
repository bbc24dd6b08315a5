"""onnxruntime and OpenVINO in a process of their own: several threads, the end, and what they do beside scoring."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exported import exported_onnx, exported_openvino

SCORE = """
import sys
import numpy as np
import metalad
for file in sys.argv[1:]:
    metalad.load(file).predict(np.zeros((64, 64, 3), np.uint8))
"""
FIRST_INFERENCES_AT_ONCE = """
import sys, threading, time
import numpy as np
import numpy.lib
import metalad
class Slow(numpy.lib.NumpyVersion):  # which OpenVINO uses in its first inference
    def __init__(self, version):
        time.sleep(0.5)
        super().__init__(version)
numpy.lib.NumpyVersion = Slow
model = metalad.load(sys.argv[1])
picture = np.zeros((64, 64, 3), np.uint8)
threads = [threading.Thread(target=model.predict, args=(picture,)) for _ in range(2)]
for thread in threads:
    thread.start()
"""
END_DURING_INFERENCE = """
import asyncio, sys, threading, time
import numpy as np
import metalad
from metalad.service.pool import WorkerPool
models = [metalad.load(file) for file in sys.argv[1:]]
picture = np.zeros((64, 64, 3), np.uint8)
begun = threading.Event()
def score():
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        for model in models:
            model.predict(picture)
            begun.set()
async def serve():
    pool = WorkerPool(2)
    pool.start()
    for _ in range(2):
        pool.submit(score, time.monotonic() + 60)
    assert await asyncio.to_thread(begun.wait, 60)
    pool.close()
asyncio.run(serve())
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an ONNX and an OpenVINO file."""
    folder = tmp_path_factory.mktemp("models")
    return exported_onnx(folder / "cap.onnx"), exported_openvino(folder / "lid.xml")


def run(code: str, *files: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a program outside of CI, where the runtimes would report their use."""
    suppressing = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in suppressing}
    environment = {**kept, "HOME": str(home)}
    command = [sys.executable, "-c", code, *map(str, files)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def require_success(done: subprocess.CompletedProcess[str]) -> None:
    # onnxruntime may warn of the machine's devices.
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_runtimes_keep_no_identifier_and_report_nothing(files: tuple[Path, Path], tmp_path: Path) -> None:
    require_success(run(SCORE + "assert 'openvino_telemetry.main' not in sys.modules", *files, home=tmp_path))
    assert list(tmp_path.rglob("*")) == []  # what reports its use keeps an identifier and a queue in the home folder


def test_threads_may_run_their_first_inferences_at_once(files: tuple[Path, Path], tmp_path: Path) -> None:
    require_success(run(FIRST_INFERENCES_AT_ONCE, files[1], home=tmp_path))


def test_a_service_may_end_while_threads_compute(files: tuple[Path, Path], tmp_path: Path) -> None:
    require_success(run(END_DURING_INFERENCE, *files, home=tmp_path))
