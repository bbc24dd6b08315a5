"""`metalad serve`: what it refuses to start with, and the process, which answers accepted requests after SIGTERM."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metalad
from metalad.data.images import write_image
from metalad.pipelines.serve import read_token
from metalad.runtime.errors import ConfigError, ModelFileError, RunError
from tests.exported import exported_onnx, exported_openvino
from tests.service.clients import png
from tests.service.pictures import picture

SECRET = "0123456789abcdef"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> metalad.Model:
    fitted = metalad.fit([picture(seed) for seed in range(8)], method="variation_model", image_size=(32, 32))
    fitted.save(tmp_path_factory.mktemp("serve") / "cap" / "model.safetensors")
    return fitted


class Process:
    """The service as a process, and its log."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "metalad", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.lines: list[str] = []
        self.port = 0
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> int:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)
        self.process.stderr.close()
        return self.process.wait(30)


@pytest.fixture
def process(model: metalad.Model, tmp_path: Path) -> Iterator[Process]:
    assert model.path is not None
    token = tmp_path / "token"
    token.write_text(SECRET)
    started = Process(f"bottle={model.path.parent}", "--token-file", str(token), "--keep-feedback", str(tmp_path / "k"))
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.stop()


def answer_of(port: int, content: bytes, secret: str = SECRET) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/predict", content, {"Authorization": f"Bearer {secret}"})
    with connection.getresponse() as answer:
        values = json.loads(answer.read())
    connection.close()
    return answer.status, values


def test_the_process_serves_logs_and_answers_every_accepted_request_after_sigterm(
    process: Process, model: metalad.Model, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        write_image(file, picture(50 + number))
    expected = [model.predict(file).score for file in files]
    assert answer_of(process.port, files[0].read_bytes(), "wrong")[0] == 401
    found: list[Any] = []

    def client() -> None:
        while True:
            for file, score in zip(files, expected, strict=True):
                try:
                    status, values = answer_of(process.port, file.read_bytes())
                except (ConnectionError, http.client.RemoteDisconnected):
                    return
                found.append((status, values["results"][0]["score"] == score))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(found) < 8:
        time.sleep(0.01)
    assert process.stop() == 0
    for thread in threads:
        thread.join(30)
    assert set(found) == {(200, True)}
    log = "".join(process.lines)
    assert "model bottle: variation_model, trained on 8 good images, 32 x 32 pixels, threshold" in log
    assert "other users may read" in log  # the file of the token
    assert "POST /v1/predict 401" in log
    assert re.search(r"POST /v1/predict 200 \d\.\d+ s bottle: image (OK|NG) \d", log)
    assert SECRET not in log
    accepted, answered, closed = re.search(r"stopped: (\d+) requests accepted, (\d+) answered, (\d+)", log).groups()  # type: ignore[union-attr]
    assert (int(accepted), closed) == (int(answered), "0")
    assert int(answered) == len(found) + 1


def test_ctrl_c_after_sigterm_ends_the_process_without_the_answers(process: Process) -> None:
    content, found, count = png(np.zeros((4000, 4000, 3), np.uint8)), list[int](), 16

    def client() -> None:
        with contextlib.suppress(ConnectionError, http.client.HTTPException, ValueError):
            found.append(answer_of(process.port, content)[0])

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    process.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.process.send_signal(signal.SIGINT)
    assert process.end() == 0
    for thread in threads:
        thread.join(30)
    assert found.count(200) < count
    assert "Traceback" not in "".join(process.lines)


WITHOUT_TORCH = """
import sys
for name in ("torch", "scipy", "matplotlib", "safetensors"):
    sys.modules[name] = None
from pathlib import Path
from tests.service.clients import client_of
image = Path(sys.argv[1]).read_bytes()
with client_of(Path(), models=tuple(sys.argv[2:])) as client:
    assert [model["name"] for model in client.get("/v1/models").json()["models"]] == ["cap", "lid"]
    for name in ("cap", "lid"):
        answer = client.post(f"/v1/predict?model={name}&include=overlay,map,input", content=image)
        print(repr(answer.json()["results"][0]["score"]))
"""


def test_exported_models_are_served_without_torch_with_the_scores_of_predict(tmp_path: Path) -> None:
    models = exported_onnx(tmp_path / "cap.onnx"), exported_openvino(tmp_path / "lid.xml")
    image = tmp_path / "image.png"
    write_image(image, picture(0))
    command = [sys.executable, "-c", WITHOUT_TORCH, str(image), *map(str, models)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [float(line) for line in done.stdout.split()] == [metalad.load(file).predict(image).score for file in models]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_an_address_that_others_reach_needs_a_token_or_insecure(model: metalad.Model, host: str) -> None:
    with pytest.raises(ConfigError, match="--token-file FILE, or --insecure"):
        metalad.serve([str(model.path)], host=host)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"insecure": True, "token_file": "token"}, "exclude each other"),
        ({"queue": 0}, "queue is 0"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"max_megapixels": float("inf")}, "max_megapixels is inf"),
        ({"port": 70000}, "port is 70000"),
        ({"models": ["a=x", "a=y"]}, "two models are called 'a'"),
        ({"models": []}, "no model to serve"),
    ],
)
def test_impossible_settings_are_refused(
    model: metalad.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text(SECRET)
    Path("token").chmod(0o600)
    with pytest.raises(ConfigError, match=reason):
        metalad.serve(settings.pop("models", [str(model.path)]), **{"port": 0, **settings})


def test_a_used_port_and_a_missing_model_are_errors(model: metalad.Model, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"cannot listen on 127.0.0.1, port {port}: .*; choose another --port"):
            metalad.serve([str(model.path)], port=port)
    with pytest.raises(ModelFileError, match="nothing"):
        metalad.serve([str(tmp_path / "nothing")], port=0)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"`metalad serve` needs uvicorn, .*; install metalad\[serve\]"):
        metalad.serve(["x"])


@pytest.mark.parametrize("content", ["", "short", "has a space inside", "schlüssel-mit-umlaut", "zero\0" * 5])
def test_a_token_must_be_long_and_fit_a_header(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="16 or more ASCII characters"):
        read_token(file)
    with pytest.raises(ConfigError, match="cannot read the token in"):
        read_token(tmp_path / "none")


@pytest.mark.skipif(os.name != "posix", reason="file permissions of POSIX")
@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_token_that_others_may_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: bool
) -> None:
    file = tmp_path / "token"
    file.write_text(f" {SECRET}\n")
    file.chmod(mode)
    assert read_token(file) == SECRET
    assert ("other users may read" in caplog.text) == warns
