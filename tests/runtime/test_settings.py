import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import check_choices, describe, from_json, from_texts, setting


@dataclass(frozen=True, kw_only=True)
class Oven:
    """Example with one setting of every type."""

    degrees: float = setting(180.0, "temperature")
    minutes: int = setting(20, "duration")
    fan: bool = setting(False, "circulate the air")
    size: tuple[int, int] = setting((40, 60), "height and width")
    shelves: tuple[Literal["top", "middle", "low"], ...] = setting(("middle",), "shelves in use")
    mode: Literal["bake", "grill"] = setting("bake", "heating mode")
    name: str = setting("oven", "display name")
    timer: int | None = setting(None, "minutes until the alarm")


OVENS = st.builds(
    Oven,
    degrees=st.floats(allow_nan=False, allow_infinity=False),
    minutes=st.integers(),
    fan=st.booleans(),
    size=st.tuples(st.integers(), st.integers()),
    shelves=st.lists(st.sampled_from(["top", "middle", "low"]), min_size=1).map(tuple),
    mode=st.sampled_from(["bake", "grill"]),
    name=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
    timer=st.none() | st.integers(),
)


@settings(deadline=None)
@given(OVENS)
def test_texts_round_trip(oven: Oven) -> None:
    values = dataclasses.asdict(oven)
    texts = [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in values.items()
    ]
    assert from_texts(Oven, texts) == oven


@settings(deadline=None)
@given(OVENS)
def test_json_round_trip(oven: Oven) -> None:
    assert from_json(Oven, json.loads(json.dumps(dataclasses.asdict(oven)))) == oven


def test_missing_values_get_defaults() -> None:
    assert from_texts(Oven, []) == from_json(Oven, {}) == Oven()


def test_describe_returns_default_and_help_of_each_setting() -> None:
    described = describe(Oven)
    assert [name for name, _, _ in described] == [field.name for field in dataclasses.fields(Oven)]
    assert ("size", "40,60", "height and width") in described
    assert ("timer", "None", "minutes until the alarm") in described


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("size=128", "size", (128, 128)),
        ("size=32x48", "size", (32, 48)),
        ("size= 32, 48 ", "size", (32, 48)),
        ("fan=True", "fan", True),
        ("timer=None", "timer", None),
        ("timer=none", "timer", None),
        ("degrees=2e2", "degrees", 200.0),
        ("name=a=b", "name", "a=b"),
        ("shelves=top,low", "shelves", ("top", "low")),
    ],
)
def test_accepted_value_formats(text: str, name: str, value: object) -> None:
    assert getattr(from_texts(Oven, [text]), name) == value


def test_last_value_wins() -> None:
    assert from_texts(Oven, ["minutes=1", "minutes=2"]).minutes == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minutes", "'minutes' has no value; write NAME=VALUE"),
        ("", "'' has no value"),
        ("minute=3", "Oven has no setting 'minute'; did you mean minutes?"),
        ("minutes=1.5", "minutes='1.5': expected a whole number"),
        ("minutes=", "minutes='': expected a whole number"),
        ("degrees=hot", "degrees='hot': expected a number"),
        ("fan=1", "fan='1': expected true or false"),
        ("size=1,2,3", "size='1,2,3': expected 2 values of a whole number, or one for all"),
        ("size=", "size='': expected 2 values"),
        ("shelves=top,roof", "shelves='top,roof': expected a comma-separated list, each one of top, middle, low"),
        ("mode=boil", "mode='boil': it must be one of bake, grill"),
        ("timer=soon", "timer='soon': expected a whole number, or none"),
    ],
)
def test_invalid_text_raises_config_error_of_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_texts(Oven, [text])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("degree", "did you mean degrees?"),
        ("shelf", "did you mean shelves?"),
        ("tmode", "did you mean mode or timer?"),
        ("volts", "available: degrees, fan, minutes, mode, name, shelves, size, timer"),
    ],
)
def test_unknown_setting_suggests_similar_names(name: str, hint: str) -> None:
    message = re.escape(f"Oven has no setting {name!r}; {hint}")
    with pytest.raises(ConfigError, match=message):
        from_texts(Oven, [f"{name}=1"])
    with pytest.raises(ConfigError, match=message):
        from_json(Oven, {name: 1})


def test_unknown_setting_in_json_raises_config_error() -> None:
    with pytest.raises(ConfigError, match="Oven has no setting 'volts'"):
        from_json(Oven, {"volts": 230})


def test_invalid_choice_raises_config_error() -> None:
    with pytest.raises(ConfigError, match="mode='boil': it must be one of bake, grill"):
        check_choices(Oven(mode="boil"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"shelves=.*it must be one of top, middle, low"):
        check_choices(Oven(shelves=("top", "roof")))  # type: ignore[arg-type]
    check_choices(Oven(mode="grill", shelves=("top", "low")))
