import logging
import sys

import pytest

from metalad.runtime import progress
from metalad.runtime.progress import bars, counted


def count_letters() -> None:
    assert list(counted("abc", "letters", "letter")) == list("abc")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """Make stderr a terminal, and show bars without delay."""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    return capsys


def test_bars_are_shown_only_if_enabled(terminal: pytest.CaptureFixture[str]) -> None:
    count_letters()
    with bars(shown=True):
        with bars(shown=False):
            count_letters()
        assert terminal.readouterr().err == ""
        count_letters()
        assert "letters" in terminal.readouterr().err
    count_letters()
    assert terminal.readouterr().err == ""


def test_error_disables_bars(terminal: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), bars(shown=True):
        raise KeyError
    count_letters()
    assert terminal.readouterr().err == ""


def test_short_work_shows_no_bar(terminal: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with bars(shown=True):
        count_letters()
    assert "letters" not in terminal.readouterr().err


def test_progress_is_logged_if_stderr_is_not_a_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "metalad")
    count_letters()
    assert not caplog.messages
    with bars(shown=True):
        count_letters()
    assert caplog.messages == [f"letters: {number} of 3 (letter)" for number in (1, 2, 3)]
    assert capsys.readouterr().err == ""
