import pytest

from metalad.runtime import progress
from metalad.runtime.progress import bars, counted


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)


def test_bars_are_shown_only_if_enabled(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("abc", "letters", "letter")) == list("abc")
    with bars(shown=True):
        with bars(shown=False):
            assert list(counted("abc", "letters", "letter")) == list("abc")
        assert capsys.readouterr().err == ""
        assert list(counted("abc", "letters", "letter")) == list("abc")
        assert "letters" in capsys.readouterr().err
    assert list(counted("abc", "letters", "letter")) == list("abc")
    assert capsys.readouterr().err == ""


def test_error_disables_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), bars(shown=True):
        raise KeyError
    list(counted("abc", "letters", "letter"))
    assert capsys.readouterr().err == ""


def test_short_work_shows_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with bars(shown=True):
        list(counted("abc", "letters", "letter"))
    assert "letters" not in capsys.readouterr().err
