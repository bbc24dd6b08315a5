"""Arguments of a wrong type or value from Python: one `ConfigError` that names the argument.

The calls are made in a process of their own, because the tests' type checker would refuse the values first.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import numpy as np
import metalad

images = [np.random.default_rng(index).integers(0, 255, (40, 40, 3), np.uint8) for index in range(6)]
tiny = {"method": "variation_model", "image_size": 32, "smoothing_sigma": 1}
model = metalad.fit(images, **tiny)
model.save(sys.argv[1] + "/model.safetensors")

def into_files(**arguments):
    return metalad.predict(model, [sys.argv[1]], sys.argv[1] + "/out", **arguments)

uses = {
    "predict": lambda **arguments: model.predict(images[0], **arguments),
    "stream": lambda **arguments: model.predict(images, stream=True, **arguments),
    "threshold_for": lambda false_alarms=0.1, scoring=None: model.threshold_for(false_alarms, scoring),
    "caution": lambda **arguments: model.caution(**arguments),
    "into files": into_files,
    "fit": lambda **arguments: metalad.fit(images, **tiny | arguments),
}
for case in json.loads(sys.argv[2]):
    use, name, value = case
    try:
        made = uses[use](**{name: value})
        print(json.dumps("accepted " + str(made if use == "threshold_for" else "")))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""
SCORINGS: dict[object, str] = {
    "Calibrated": "did you mean calibrated?",
    "magic": "it must be one of calibrated, raw",
    3: "it must be one of calibrated, raw",
    True: "it must be one of calibrated, raw",
    "": "it must be one of calibrated, raw",
}
EXPECTED: dict[tuple[str, str, object], str] = {
    **{
        (use, "scoring", value): f"scoring is {value!r}; {hint}"
        for use in ("predict", "stream", "threshold_for", "caution", "into files")
        for value, hint in SCORINGS.items()
    },
    **{("fit", "scoring", value): "scoring=" for value in ("Raw", 3, None)},
    **{("fit", "protocol", value): f"protocol is {value!r}; " for value in ("Paper", 1, None)},
    **{("fit", "precision", value): f"precision is {value!r}; " for value in ("fp16", 16, None)},
    **{("fit", "device", value): f"there is no device {value!r}" for value in (0, None, "gpu")},
    **{("fit", "seed", value): f"seed is {value}" if value == -1 else "seed is " for value in ("1", None, 0.5, -1)},
    **{("fit", "epochs", value): "epochs is " for value in ("1", 0, 0.5)},
    **{("fit", "minutes", value): "minutes is " for value in ("x", 0, -1)},
    **{
        (use, "false_alarms", value): f"false_alarms is {value!r}; it must be a number"
        for use in ("fit", "predict", "threshold_for", "into files")
        for value in ("x", True)
    },
    **{
        (use, "false_alarms", value): f"false_alarms is {value}; it is a probability between 0 and 1"
        for use in ("fit", "predict", "threshold_for", "into files")
        for value in (0, 1.5, "0%", "100%")
    },
    **{(use, "batch_size", value): "batch_size is " for use in ("predict", "into files") for value in ("4", 0, 1.5)},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each of the calls raised."""
    return _answers(tmp_path_factory.mktemp("model"), list(EXPECTED))


def _answers(folder: Path, cases: list[tuple[str, str, object]]) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(EXPECTED)), ids=["-".join(map(str, case)) for case in EXPECTED])
def test_a_wrong_value_is_refused_by_name(number: int, answers: list[str]) -> None:
    case = list(EXPECTED)[number]
    assert answers[number].startswith("ConfigError: "), answers[number]
    assert EXPECTED[case] in answers[number]


def test_a_percentage_is_a_rate(tmp_path: Path) -> None:
    cases: list[tuple[str, str, object]] = [
        *(("threshold_for", "false_alarms", value) for value in (0.05, "5%", " 5 %", "0.05")),
        ("fit", "false_alarms", "5%"),
        ("fit", "min_variation", "2%"),
    ]
    thresholds, others = (found := _answers(tmp_path, cases))[:4], found[4:]
    assert len(set(thresholds)) == 1
    assert float(thresholds[0].removeprefix("accepted ")) > 0
    assert others == ["accepted ", "accepted "]
