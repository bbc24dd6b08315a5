"""Misspelt commands, options and values: a suggestion, the command's usage, and exit code 2."""

import pytest

from metalad.cli.main import COMMANDS, build_parser, main
from metalad.runtime.choices import Format, Protocol, WantedPrecision

TRAIN = ["train", "data", "--out", "run"]
CASES = [
    (["trian", "data"], "metalad: error: there is no command 'trian'; did you mean train?"),
    (["xyz"], f"metalad: error: there is no command 'xyz'; it must be one of {', '.join(COMMANDS)}"),
    (["--versoin"], "metalad: error: there is no option --versoin; did you mean --version?"),
    ([*TRAIN, "--minute", "3"], "metalad train: error: there is no option --minute; did you mean --minutes?"),
    ([*TRAIN, "--minute=3"], "metalad train: error: there is no option --minute; did you mean --minutes?"),
    ([*TRAIN, "-minutes", "3"], "metalad train: error: there is no option -minutes; did you mean --minutes?"),
    (["train", "data", "--ouput", "run"], "metalad train: error: there is no option --ouput; did you mean --out?"),
    ([*TRAIN, "--false_alarms", "1"], "metalad train: error: there is no option --false_alarms; did you mean "),
    ([*TRAIN, "--qwxyz"], "metalad train: error: there is no option --qwxyz; --help lists all"),
    ([*TRAIN, "more"], "metalad train: error: unrecognized arguments: more"),
    ([*TRAIN, "--protocol", "papr"], "metalad train: error: argument --protocol: 'papr' is not possible; did you mean"),
    ([*TRAIN, "--protocol", "x"], "argument --protocol: 'x' is not possible; it must be one of default, paper"),
    ([*TRAIN, "--precision", "bf61"], "argument --precision: 'bf61' is not possible; did you mean bf16?"),
    (["evaluate", "run", "data", "--scoring", "RAW"], "argument --scoring: 'RAW' is not possible; did you mean raw?"),
    (["predict", "run", "a", "--out", "o", "--format", "cvs"], "--format: 'cvs' is not possible; did you mean csv?"),
    ([*TRAIN, "--false-alarms", "few"], "--false-alarms: it is 'few'; it must be a number"),
    (
        ["predict", "r", "a", "--out", "o", "--threshold", "5%"],
        "is a rate, not a score; did you mean --false-alarms 5%?",
    ),
    (["evaluate", "r", "a", "--threshold", "high"], "argument --threshold: it is 'high'; it must be a number"),
]


@pytest.mark.parametrize(("arguments", "line"), CASES, ids=lambda value: " ".join(value) if type(value) is list else "")
def test_a_misspelling_is_one_line_after_the_usage(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert line in shown.splitlines()[-1]
    command = f"{arguments[0]} " if arguments[0] in COMMANDS else ""
    assert shown.startswith(f"usage: metalad {command}[-h]")
    assert shown.count("error: ") == 1


def test_a_negative_number_is_no_misspelt_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*TRAIN, "--seed", "-1x"])
    assert "argument --seed: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
@pytest.mark.parametrize(("text", "rate"), [("5%", 0.05), ("0.5 %", 0.005), ("0.05", 0.05), ("1e-3", 0.001)])
def test_a_percentage_is_a_rate(command: str, text: str, rate: float) -> None:
    rest = {"train": ["--out", "run"], "evaluate": ["data"], "predict": ["a.png", "--out", "o"]}[command]
    options = build_parser().parse_args([command, "x", *rest, "--false-alarms", text])
    assert options.false_alarms == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("command", "option", "choices"),
    [("train", "protocol", Protocol), ("train", "precision", WantedPrecision), ("predict", "format", Format)],
)
def test_all_choices_are_accepted_and_shown(
    command: str, option: str, choices: object, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = choices.__args__  # type: ignore[attr-defined]
    for text in texts:
        positional = ["x", "y"] if command == "predict" else ["x"]
        options = build_parser().parse_args([command, *positional, "--out", "o", f"--{option}", text])
        assert getattr(options, option) == text
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"--{option} {{{','.join(texts)}}}" in capsys.readouterr().out
