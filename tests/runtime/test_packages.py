from pathlib import Path

import pytest

from metalad.runtime.errors import ConfigError
from metalad.runtime.packages import not_in_runtime, require_packages


def require(module: str) -> None:
    require_packages("`metalad fly`", {"json": "json", module: "metalad-wings"}, "install metalad[fly]")


@pytest.mark.parametrize("module", ["metalad_wings", "metalad_wings.left.tip", "json.wings"])
def test_a_missing_package_is_named_with_its_user_and_the_remedy(module: str) -> None:
    expected = "`metalad fly` needs metalad-wings, which is not installed; install metalad[fly]"
    with pytest.raises(ConfigError) as raised:
        require(module)
    assert str(raised.value) == expected


def test_all_missing_packages_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"x needs wings, tail, which are not installed; land$"):
        require_packages("x", {"metalad_wings": "wings", "json": "json", "metalad_tail": "tail"}, "land")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import metalad_feathers", "No module named 'metalad_feathers'"),
        ("from json import feathers", "cannot import name 'feathers' from 'json'"),
        ("raise OSError('libwings.so: cannot open\\nmore')", r"libwings.so: cannot open\)"),
        ("raise AttributeError", r"\(AttributeError\)"),
    ],
)
def test_a_broken_package_is_named_with_the_reason_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    (tmp_path / "metalad_wings.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=f"metalad-wings, which is installed but cannot be imported .*{reason}"
    ) as raised:
        require("metalad_wings")
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("; install metalad[fly] anew")


def test_only_what_the_runtime_lacks_is_explained_by_it() -> None:
    line = not_in_runtime("metalad.train", ModuleNotFoundError(name="torch"))
    assert line == "metalad.train needs torch, which is not installed; install metalad instead of metalad-runtime"
    assert not_in_runtime("x", ModuleNotFoundError(name="metalad.methods.metal")) is not None
    assert not_in_runtime("x", ModuleNotFoundError(name="numpy")) is None
    assert not_in_runtime("x", ModuleNotFoundError()) is None
    assert not_in_runtime("x", ImportError(name="torch")) is None  # it is installed, and broken
