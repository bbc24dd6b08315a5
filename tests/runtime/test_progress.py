import logging
import sys

import pytest

from metalad.runtime import progress
from metalad.runtime.progress import bars, counted


def count_letters() -> None:
    assert list(counted("abc", "letters", "letter")) == list("abc")


def simulate_terminal(monkeypatch: pytest.MonkeyPatch, delay: float = 0.0) -> None:
    """Make stderr a terminal; to be called in the test, because pytest replaces stderr after the fixtures."""
    monkeypatch.setattr(progress, "DELAY", delay)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_bars_are_shown_only_if_enabled(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_terminal(monkeypatch)
    count_letters()
    with bars(shown=True):
        with bars(shown=False):
            count_letters()
        assert capsys.readouterr().err == ""
        count_letters()
        assert "letters" in capsys.readouterr().err
    count_letters()
    assert capsys.readouterr().err == ""


def test_error_disables_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_terminal(monkeypatch)
    with pytest.raises(KeyError), bars(shown=True):
        raise KeyError
    count_letters()
    assert capsys.readouterr().err == ""


def test_short_work_shows_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_terminal(monkeypatch, delay=60.0)
    with bars(shown=True):
        count_letters()
    assert "letters" not in capsys.readouterr().err


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
