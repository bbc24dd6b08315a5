"""`metalad watch` on the command line: output, signals, stored results, and what it imports."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import metalad
from metalad.cli.main import main
from metalad.pipelines.watch.stored import stored_results
from tests.exported import exported_onnx
from tests.pipelines.watch.images import put


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_onnx(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    put(tmp_path / "inbox/a.png")
    put(tmp_path / "inbox/b.png", good=False)
    put(tmp_path / "inbox/c.png", content=b"text")
    return tmp_path / "inbox"


def once(model: Path, inbox: Path, *more: str) -> int:
    out = str(inbox.parent / "out")
    waits = ("--settle", "0", "--patience", "0")
    return main(["watch", str(model), str(inbox), "--out", out, "--once", *waits, *more])


def test_a_line_or_a_json_object_for_each_result(model: Path, inbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert once(model, inbox) == 0
    printed = capsys.readouterr()
    lines = sorted(line.split()[::2] for line in printed.out.splitlines())
    assert lines == [["NG", str(inbox / "b.png")], ["OK", str(inbox / "a.png")]]
    assert f"cannot score {inbox / 'c.png'}: not a" in printed.err
    assert "1 of 2 images anomalous; results in" in printed.err
    put(inbox / "d.png", good=False)
    assert once(model, inbox, "--json", "--move", "--quiet") == 0
    (line,) = capsys.readouterr().out.splitlines()
    values = json.loads(line)
    assert (values["id"], values["is_anomalous"]) == (4, True)
    assert values["moved_to"] == str(inbox.parent / "out/ng/d.png")
    assert len(values["regions"]) == 1


def test_stored_results_are_printed(model: Path, inbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once(model, inbox)
    out = inbox.parent / "out"
    capsys.readouterr()
    assert main(["watch", "--results", str(out), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [result.to_dict() for result in stored_results(out)]
    assert main(["watch", "--results", str(out), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(Path(row["path"]).name, row["is_anomalous"], row["regions"]) for row in rows} == {
        ("a.png", "false", "0"),
        ("b.png", "true", "1"),
        ("c.png", "", "0"),
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["RUN"], "watch needs SOURCE"),
        (["RUN", "inbox"], "watch needs --out DIR"),
        (["RUN", "missing", "--out", "out"], "no folder"),
        (["RUN", "inbox", "--out", "out", "--csv"], "--csv is for --results"),
        (["--results", "nowhere"], "no results of watch in nowhere"),
        (["--results", "nowhere", "--csv", "--json"], "exclude each other"),
        (["RUN", "inbox", "--out", "out", "--on-anomalous", "no-such-program"], "there is no program"),
    ],
)
def test_impossible_arguments_are_one_line(
    model: Path,
    inbox: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(inbox.parent)
    assert main(["watch", *[str(model) if word == "RUN" else word for word in arguments]]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    assert text in line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_image_in_work(model: Path, inbox: Path, number: signal.Signals, code: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(metalad.__file__).parents[1])}
    command = [sys.executable, "-m", "metalad", "watch", str(model), str(inbox), "--out", str(inbox.parent / "out")]
    with subprocess.Popen(
        [*command, "--settle", "0.1"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(("OK", "NG"))
        start = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == code, errors
    assert time.monotonic() - start < 10
    assert "stopped: " in errors
    assert "Traceback" not in errors
    assert len(list(stored_results(inbox.parent / "out"))) >= 1


def test_watching_with_an_exported_model_imports_no_torch(model: Path, inbox: Path) -> None:
    code = """
import sys
for name in ("torch", "scipy", "matplotlib", "safetensors"):
    sys.modules[name] = None  # an import raises
from metalad.cli.main import main
code = main(sys.argv[1:])
print(code, sorted({"torch", "scipy", "matplotlib"} & {name for name, value in sys.modules.items() if value}))
"""
    arguments = ["watch", str(model), str(inbox), "--out", str(inbox.parent / "out"), "--once", "--settle", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(metalad.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--patience", "0", "--poll", "1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
