"""Annotations that bound a setting's value, and the base class of settings that checks them."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from math import isfinite
from operator import or_
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, NamedTuple, Union, get_args, get_origin

from ssdd_hub.errors import Check, nearest, require
from ssdd_hub.text import show


class Rule(NamedTuple):
    """What a setting's value must be, in words and as a test, and the names that it may be, if any."""

    required: str
    holds: Callable[[Any], bool]
    choices: Collection[str] = ()


def at_most(bound: float) -> Rule:
    """Returns the rule of a number with an upper bound."""
    return Rule(f"at most {bound}", lambda value: value <= bound)


def at_least(bound: float) -> Rule:
    """Returns the rule of a number with a lower bound, for `Annotated[int, ...]`."""
    return Rule(f"at least {bound}", lambda value: value >= bound)


def one_of(names: Iterable[str]) -> Rule:
    """Returns the rule of a name out of a list, for `Annotated[str, ...]`."""
    choices = tuple(names)
    return Rule(f"one of {', '.join(choices)}", choices.__contains__, choices)


def either(*names: str) -> Rule:
    """Returns the rule of a name out of two or three, which a message joins by `or`."""
    return Rule(f"{', '.join(names[:-1])} or {names[-1]}", names.__contains__, names)


def some_of(names: Collection[str]) -> Rule:
    """Returns the rule of a list of names, for `Annotated[list[str], ...]`; `names` may grow later."""
    return Rule(f"some of {', '.join(names)}", lambda given: all(name in names for name in given), names)


def among(what: str, given: str | Sequence[str], known: Collection[str]) -> Check:
    """Returns the check that a name, or each of several, is known; its message has the nearest."""
    unknown = [name for name in ([given] if isinstance(given, str) else given) if name not in known]
    kind = "one" if isinstance(given, str) else "some"
    wrong = f"{', '.join(map(show, unknown))}{nearest(unknown, known)}"
    return not unknown, f"{what} must be {kind} of {', '.join(known)}, got {wrong}"


Natural = Annotated[int, at_least(0)]
Count = Annotated[int, at_least(1)]
Several = Annotated[int, at_least(2)]
Repeats = Annotated[int, at_least(1), at_most(100_000)]
Processes = Annotated[int, at_least(1), at_most(4096)]
Positive = Annotated[float, Rule("above 0", lambda value: value > 0)]
Weight = Annotated[float, at_least(0)]
Share = Annotated[float, Rule("in [0, 1]", lambda value: 0 <= value <= 1)]
Fraction = Annotated[float, Rule("in [0, 1)", lambda value: 0 <= value < 1)]

LARGEST_WHOLE = 2**63 - 1
"""Of the whole numbers that torch takes."""
_LARGEST = 1e30  # float32 has room for its products with other settings
# Python takes true and false for numbers, and its whole numbers have no end.
_KINDS = {
    bool: (Rule("true or false", lambda value: isinstance(value, bool)),),
    int: (
        Rule("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
        Rule("below 2**63, above -2**63", lambda value: abs(value) <= LARGEST_WHOLE),
    ),
    float: (
        Rule(
            "a finite number",
            lambda value: (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and (isinstance(value, int) or isfinite(value))
            ),
        ),
        Rule(f"from {-_LARGEST:g} to {_LARGEST:g}", lambda value: abs(value) <= _LARGEST),
    ),
}

# Types of settings alone: those of objectives are class attributes too, and not all texts there are settings.
_PLAIN: dict[Any, Rule] = {
    str: Rule("text", lambda value: isinstance(value, str | PathLike)),
    list: Rule("a list", lambda value: isinstance(value, list | tuple)),
    dict: Rule("a dictionary", lambda value: isinstance(value, Mapping)),
}


def rules_of(annotation: Any) -> list[Rule]:
    """Returns the rules of an annotation, those of its type first; only bool, int and float have any."""
    kind = _KINDS.get(getattr(annotation, "__origin__", annotation), ())
    return [rule for rule in (*kind, *getattr(annotation, "__metadata__", ())) if isinstance(rule, Rule)]


def unmet(rules: Iterable[Rule], value: Any) -> str | None:
    """Returns what the first broken rule requires; None where the value keeps all."""
    return next((rule.required for rule in rules if not rule.holds(value)), None)


def plain_type(annotation: Any) -> Any:
    """Returns an annotation without its rules: `int | None` for `Count | None`."""
    if get_origin(annotation) in (Union, UnionType):
        return reduce(or_, map(plain_type, get_args(annotation)))
    return annotation.__origin__ if get_origin(annotation) is Annotated else annotation


class Settings:
    """The base of frozen dataclasses of settings, which check themselves when they are made.

    `class ProbeSettings(Settings, section="probe")` annotates its fields with `bool`, `int`, `float`, `str`, lists,
    dictionaries or the types of this module, `| None` where a setting can be left open. What depends on several
    settings goes into `conflicts`.

    Raises:
        SettingsError: Values of another type or range than annotated, or that contradict each other; all are named.
    """

    section: ClassVar[str]  # the first part of the settings' names in messages
    arguments_of: ClassVar[Mapping[str, str]] = {}  # from a dictionary of arguments to the setting that names whose

    def __init_subclass__(cls, section: str | None = None) -> None:
        super().__init_subclass__()
        cls.section = section or cls.section

    def __post_init__(self) -> None:
        bounds, conflicts = [*self._bounds()], list[Check]()
        try:
            conflicts += self.conflicts()
        except Exception:  # values of another type than annotated may raise anything
            if all(holds for holds, _ in bounds):
                raise
        require(*bounds, *conflicts)

    def _bounds(self) -> Iterator[Check]:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value, (kind, *others) = getattr(self, field.name), get_args(field.type) or (field.type,)
            optional = NoneType in others
            annotation: Any = kind if optional else field.type
            plain = _PLAIN.get(getattr(annotation, "__origin__", annotation))
            rules = [*([plain] if plain else []), *rules_of(annotation)]
            required = None if optional and value is None else unmet(rules, value)
            known = [choice for rule in rules for choice in rule.choices]
            hint = nearest(value, known)
            yield required is None, f"{self.option(field.name)} must be {required}, got {show(value)}{hint}"

    @classmethod
    def option(cls, name: str) -> str:
        """Returns a setting's full name."""
        return f"{cls.section}.{name}"

    def conflicts(self) -> Iterable[Check]:
        """Returns the checks between settings."""
        return ()
