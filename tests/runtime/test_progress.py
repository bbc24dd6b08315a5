import pytest

from metalad.runtime import progress
from metalad.runtime.progress import bars, counted


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)


def test_a_bar_is_drawn_where_it_is_wanted_and_nowhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("abc", "letters", "letter")) == list("abc")
    with bars(drawn=True):
        with bars(drawn=False):
            assert list(counted("abc", "letters", "letter")) == list("abc")
        assert capsys.readouterr().err == ""
        assert list(counted("abc", "letters", "letter")) == list("abc")
        assert "letters" in capsys.readouterr().err
    assert list(counted("abc", "letters", "letter")) == list("abc")
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_wish_for_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), bars(drawn=True):
        raise KeyError
    list(counted("abc", "letters", "letter"))
    assert capsys.readouterr().err == ""


def test_nothing_is_drawn_of_what_is_done_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with bars(drawn=True):
        list(counted("abc", "letters", "letter"))
    assert "letters" not in capsys.readouterr().err
