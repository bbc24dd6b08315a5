import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import check_choices, describe, from_json, from_texts, setting


@dataclass(frozen=True, kw_only=True)
class Oven:
    """One setting of every type."""

    degrees: float = setting(180.0, "how hot")
    minutes: int = setting(20, "how long")
    fan: bool = setting(False, "whether the air moves")
    size: tuple[int, int] = setting((40, 60), "height and width")
    shelves: tuple[Literal["top", "middle", "low"], ...] = setting(("middle",), "which shelves")
    mode: Literal["bake", "grill"] = setting("bake", "what it does")
    name: str = setting("oven", "what it is called")
    timer: int | None = setting(None, "when it rings")


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
def test_what_is_described_can_be_read_back(oven: Oven) -> None:
    values = dataclasses.asdict(oven)
    shown = [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in values.items()
    ]
    assert from_texts(Oven, shown) == oven


@settings(deadline=None)
@given(OVENS)
def test_a_config_comes_back_from_json(oven: Oven) -> None:
    assert from_json(Oven, json.loads(json.dumps(dataclasses.asdict(oven)))) == oven


def test_defaults_stand_where_nothing_is_said() -> None:
    assert from_texts(Oven, []) == from_json(Oven, {}) == Oven()


def test_describe_gives_each_setting_its_default_and_help() -> None:
    described = describe(Oven)
    assert [name for name, _, _ in described] == [field.name for field in dataclasses.fields(Oven)]
    assert ("size", "40,60", "height and width") in described
    assert ("timer", "None", "when it rings") in described


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
def test_values_are_written_as_people_do(text: str, name: str, value: object) -> None:
    assert getattr(from_texts(Oven, [text]), name) == value


def test_the_last_of_two_values_counts() -> None:
    assert from_texts(Oven, ["minutes=1", "minutes=2"]).minutes == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minutes", "'minutes' has no value; write NAME=VALUE"),
        ("", "'' has no value"),
        ("minute=3", "Oven has no setting 'minute'; it has: degrees, fan, minutes"),
        ("minutes=1.5", "minutes='1.5': expected a whole number"),
        ("minutes=", "minutes='': expected a whole number"),
        ("degrees=hot", "degrees='hot': expected a number"),
        ("fan=1", "fan='1': expected true or false"),
        ("size=1,2,3", "size='1,2,3': expected 2 values of a whole number, or one for all"),
        ("size=", "size='': expected 2 values"),
        ("shelves=top,roof", "shelves='top,roof': expected a comma-separated list, each one of top, middle, low"),
        ("mode=boil", "mode='boil': expected one of bake, grill"),
        ("timer=soon", "timer='soon': expected a whole number, or none"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_texts(Oven, [text])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_with_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="Oven has no setting 'volts'"):
        from_json(Oven, {"volts": 230})


def test_a_misspelt_choice_is_seen_without_a_type_checker() -> None:
    with pytest.raises(ConfigError, match="mode='boil': expected one of bake, grill"):
        check_choices(Oven(mode="boil"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"shelves=.*each one of top, middle, low"):
        check_choices(Oven(shelves=("top", "roof")))  # type: ignore[arg-type]
    check_choices(Oven(mode="grill", shelves=("top", "low")))
