"""Named pipes, sockets and devices given as paths: refused by name at once, never waited for."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from metalad.cli.main import main
from metalad.data.images import image_size, read_image
from metalad.runtime.errors import ImageError, RunError
from metalad.runtime.files import special_kind, write_text
from tests.noise import draw, noise_run
from tests.tiny import tiny_category

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path / "pipe.png"


def test_the_kind_of_a_special_file(tmp_path: Path, pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert special_kind(Path("socket")) == "a socket"
    (tmp_path / "link").symlink_to(pipe)
    assert [special_kind(path) for path in (pipe, tmp_path / "link", Path(os.devnull), tmp_path, Path(__file__))] == [
        "a named pipe",
        "a named pipe",
        "a device",
        None,
        None,
    ]


def test_an_image_that_is_a_pipe_is_unreadable(pipe: Path) -> None:
    for function in (read_image, image_size):
        with pytest.raises(ImageError, match=f"cannot read {pipe}: a named pipe, not an image file"):
            function(pipe)


def test_writing_does_not_replace_a_special_file(pipe: Path) -> None:
    with pytest.raises(RunError, match="it is a named pipe; choose the name of a new file"):
        write_text(pipe, "text")
    assert special_kind(pipe) == "a named pipe"


COMMANDS = {
    "predict": (["predict", "RUN", "PIPE", "--out", "OUT"], "is a named pipe, not an image file or a folder"),
    "predict with others": (["predict", "RUN", "IMAGE", "PIPE", "--out", "OUT"], "is a named pipe, not an image file"),
    "a device": (["predict", "RUN", "/dev/zero", "--out", "OUT"], "/dev/zero is a device, not an image file or a fol"),
    "run of predict": (["predict", "PIPE", "IMAGE", "--out", "OUT"], "no model.safetensors there"),
    "run of evaluate": (["evaluate", "PIPE", "DATA"], "no model.safetensors there"),
    "run of compare": (["compare", "PIPE", "RUN"], "no model.safetensors there"),
    "data of evaluate": (["evaluate", "RUN", "PIPE"], "PIPE"),
    "data of train": (["train", "PIPE", "--out", "OUT"], "PIPE"),
    "out of train": (["train", "DATA", "--out", "PIPE", "--method", "variation_model"], "a file exists where a folder"),
    "out of predict": (["predict", "RUN", "IMAGE", "--out", "PIPE"], "a file exists where a folder is needed"),
    "weights": (
        ["train", "DATA", "--out", "OUT", "--method", "padim", "--weights", "PIPE"],
        "is a named pipe, not a w",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_a_pipe(
    name: str, run: Path, pipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, part = COMMANDS[name]
    paths = {"RUN": run, "PIPE": pipe, "OUT": tmp_path / "out", "DATA": tmp_path / "data", "IMAGE": tmp_path / "x.png"}
    draw(tmp_path / "x.png")
    tiny_category(tmp_path / "data", train=4)
    assert main([str(paths.get(argument, argument)) for argument in arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("metalad: error: ")
    assert part.replace("PIPE", str(pipe)) in line


def test_a_pipe_in_a_folder_is_left_out(run: Path, pipe: Path, tmp_path: Path) -> None:
    draw(tmp_path / "x.png")
    command = [sys.executable, "-m", "metalad", "predict", str(run), str(pipe.parent), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "1 of 1 images" in done.stderr or "0 of 1 images" in done.stderr
    assert "1 file left out: 1 special file" in done.stderr
