"""The list of methods and their settings."""

import dataclasses

import pytest

from metalad.methods import methods
from metalad.pipelines.config import DEFAULT_METHOD
from metalad.pipelines.list_methods import MethodInfo, SettingInfo, list_methods
from metalad.runtime.errors import ConfigError


def test_every_method_is_listed_with_its_summary_and_settings() -> None:
    found = list_methods()
    assert [info.name for info in found] == list(methods())
    assert DEFAULT_METHOD in {info.name for info in found}
    for info in found:
        method = methods()[info.name]
        assert isinstance(info, MethodInfo)
        assert info.summary == method.summary
        assert info.summary
        assert [setting.name for setting in info.settings] == [
            field.name for field in dataclasses.fields(method.load_config())
        ]
        for setting in info.settings:
            assert isinstance(setting, SettingInfo)
            assert setting.default, (info.name, setting.name)
            assert setting.help, (info.name, setting.name)
            assert "\n" not in setting.help


def test_one_method_is_listed_by_its_name() -> None:
    (found,) = list_methods("patchcore")
    assert found in list_methods()
    assert {setting.name for setting in found.settings} >= {"image_size", "smoothing_sigma"}


def test_defaults_are_those_of_the_config() -> None:
    (found,) = list_methods("variation_model")
    config = methods()["variation_model"].load_config()()
    assert {setting.name: setting.default for setting in found.settings}["smoothing_sigma"] == str(
        config.smoothing_sigma
    )


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no method 'alchemy'; there are: "):
        list_methods("alchemy")
