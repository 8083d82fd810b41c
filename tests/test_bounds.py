"""Settings classes check their values by their annotations, and name all that is wrong at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pytest

from ssdd_hub.bounds import Count, Fraction, Positive, Settings, at_least, either, one_of, plain_type
from ssdd_hub.errors import Check, SettingsError


@dataclass(frozen=True)
class Oven(Settings, section="oven"):
    trays: Count = 1
    heat: Positive = 180.0
    moisture: Fraction = 0.0
    minutes: Annotated[int, at_least(5)] | None = None
    air: bool = True
    mode: Annotated[str, one_of(("bake", "grill", "toast"))] = "bake"
    door: Annotated[str, either("open", "shut")] = "shut"
    extra: dict[str, Any] | None = None
    racks: list[float] = field(default_factory=list)

    def conflicts(self) -> Iterator[Check]:
        yield self.mode != "grill" or self.door == "open", "oven.door must be open to grill"
        yield sum(self.racks) < 9 and self.mode.islower(), "oven.racks must not be too many"


@dataclass(frozen=True)
class Stove(Oven):
    plates: Count = 4


def problems(build, **settings):
    with pytest.raises(SettingsError) as caught:
        build(**settings)
    return caught.value.problems


def test_every_wrong_value_and_every_conflict_is_named_in_order():
    wrong = {"trays": 0, "heat": -1, "moisture": 1, "minutes": 4, "air": 1, "mode": "fry", "door": "ajar"}
    assert problems(Oven, **wrong) == [
        "oven.trays must be at least 1, got 0",
        "oven.heat must be above 0, got -1",
        "oven.moisture must be in [0, 1), got 1",
        "oven.minutes must be at least 5, got 4",
        "oven.air must be true or false, got 1",
        "oven.mode must be one of bake, grill, toast, got 'fry'",
        "oven.door must be open or shut, got 'ajar'",
    ]
    assert problems(Oven, mode="grill", trays=0)[1:] == ["oven.door must be open to grill"]


@pytest.mark.parametrize(
    ("settings", "required"),
    [
        ({"trays": 1.0}, "a whole number, got 1.0"),
        ({"trays": True}, "a whole number, got True"),
        ({"trays": None}, "a whole number, got None"),
        ({"heat": float("nan")}, "a finite number, got nan"),
        ({"minutes": "10"}, "a whole number, got '10'"),
        ({"mode": ["bake"]}, "text, got ['bake']"),
        ({"door": None}, "text, got None"),
        ({"extra": [1]}, "a dictionary, got [1]"),
        ({"racks": "ab"}, "a list, got 'ab'"),
        ({"racks": {1: 2}}, "a list, got {1: 2}"),
    ],
    ids=str,
)
def test_values_of_another_type_are_refused(settings, required):
    assert problems(Oven, **settings) == [f"oven.{next(iter(settings))} must be {required}"]


def test_values_at_the_bounds_and_open_ones_are_taken():
    assert Oven(minutes=5, heat=1, extra={}) != Oven()
    assert Oven(mode="grill", door="open").door == "open"


def test_a_subclass_checks_all_settings_under_the_same_section():
    assert problems(Stove, plates=0, trays=0) == [
        "oven.trays must be at least 1, got 0",
        "oven.plates must be at least 1, got 0",
    ]
    assert problems(lambda: replace(Stove(), plates=-1)) == ["oven.plates must be at least 1, got -1"]


def test_types_are_shown_without_their_rules():
    assert plain_type(Count) is int
    assert plain_type(Count | None) == int | None and str(plain_type(Count | None)) == "int | None"
    assert plain_type(Annotated[list[float], at_least(1)]) == list[float]
    assert plain_type(dict[str, Any]) == dict[str, Any]
