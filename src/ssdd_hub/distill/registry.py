"""Classes by name with settings of their own: those of this package, and those that other packages offer."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ssdd_hub.arguments import argument_checks, check_arguments
from ssdd_hub.bounds import Settings
from ssdd_hub.errors import Check, InputError, nearest
from ssdd_hub.text import show


@dataclass(frozen=True)
class _Choice(Settings, section="choice"):
    arguments_of: ClassVar[dict[str, str]] = {"args": "name"}

    name: str
    args: dict[str, Any] = field(default_factory=dict)

    def conflicts(self) -> Iterable[Check]:
        """Returns the checks of the arguments."""
        return argument_checks(self.option("args"), self.args, (), "")


@dataclass(frozen=True)
class MethodSettings(_Choice, section="method"):
    """Which method distils.

    Attributes:
        name: One of `ssdd_hub.list_methods()`.
        args: Settings of the method.
    """

    name: str = "krr_st"


@dataclass(frozen=True)
class ParameterisationSettings(_Choice, section="parameterisation"):
    """What is learned and stored.

    Attributes:
        name: One of `ssdd_hub.list_parameterisations()`.
        args: Settings of the parameterisation.
    """

    name: str = "pixels"


class Named(Protocol):
    """A class with a name, its paper and a dataclass of settings, as registries hold."""

    name: ClassVar[str]
    citation: ClassVar[str]
    Settings: ClassVar[type]


Kind = TypeVar("Kind", bound=Named)


class Registry(Generic[Kind]):
    """Subclasses of `base` by name, called `noun` in messages; packages offer more as entry points of `group`.

    `missing` says in messages what is wrong with other names.

    Attributes:
        known: Those of this package by name; a script may add its own.
        elsewhere: What to use for other names that people look for, by name.
    """

    def __init__(self, noun: str, base: type[Any], group: str, *ours: type[Kind], missing: str = "is unknown") -> None:
        self.noun, self.base, self.group, self.missing = noun, base, group, missing
        self.known: dict[str, type[Kind]] = {each.name: each for each in ours}
        self.elsewhere: dict[str, str] = {}

    def names(self) -> list[str]:
        """Returns all names; no other package is imported for it."""
        return sorted({*self.known, *(point.name for point in entry_points(group=self.group))})

    def find(self, name: str) -> type[Kind]:
        """Returns a class; ours come before those of other packages.

        Raises:
            InputError: The name is unknown, or the package that offers it does not give such a class.
        """
        if name in self.known:
            return self.known[name]
        for point in entry_points(group=self.group, name=name):
            return self._load(point)
        hint = f"use {self.elsewhere[name]}" if name in self.elsewhere else _known(name, self.names())
        raise InputError(f"{self.noun} {name!r} {self.missing}: {hint}")

    def settings(self, name: str, args: Mapping[str, Any], shared: Mapping[str, Any]) -> Any:
        """Returns the settings of a class, of `args` and, where it has a field of the name, of `shared`.

        Raises:
            InputError: The name or a setting is unknown, or a value is out of range.
        """
        settings = self.find(name).Settings
        check_arguments(f"settings of the {self.noun} {name!r}", args)
        kinds = typing.get_type_hints(settings)
        fields = [entry for entry in dataclasses.fields(settings) if entry.init]
        values = {entry.name: shared[entry.name] for entry in fields if entry.name in shared}
        known = [entry.name for entry in fields if not entry.metadata.get("given")]
        try:
            for key, value in args.items():
                if key not in known:
                    hint = _known(key, known) if known else "it has none"
                    raise InputError(f"{self.noun} {name!r} has no setting {key!r}: {hint}")
                problem = _problem(value, kinds[key])
                if problem:
                    raise InputError(f"setting {key!r} of the {self.noun} {name!r} must be {problem}")
                if dataclasses.is_dataclass(kinds[key]):
                    before = values[key] if key in values else kinds[key]()
                    value = dataclasses.replace(before, **value)
                values[key] = value
            return settings(**values)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.noun} {name!r} does not take these settings {dict(args)}: {error}; give values of the types "
                f"that {settings.__name__} states"
            ) from error

    def check(self, chosen: Any, shared: Mapping[str, Any]) -> Check:
        """Returns whether there is such a class with such settings, and what is wrong otherwise.

        Args:
            chosen: Has the `name` and the `args` of `settings`.
            shared: As for `settings`.
        """
        try:
            self.settings(chosen.name, chosen.args, shared)
        except InputError as error:
            return False, str(error)
        return True, ""

    def _load(self, point: EntryPoint) -> type[Kind]:
        about = f"{self.noun} {point.name!r} of the package {point.dist.name if point.dist else point.value}"
        advice = f"({point.value}); fix or remove that package"
        try:
            found = point.load()
        # An import may raise anything.
        except Exception as error:
            raise InputError(f"{about} cannot be imported: {type(error).__name__}: {error} {advice}") from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            required = f"{self.base.__module__}.{self.base.__name__}"
            raise InputError(f"{about} must be a subclass of {required}, got {found!r} {advice}")
        if problem := _incomplete(found):
            raise InputError(f"{about} needs {problem} {advice}")
        return found


def _incomplete(found: type[Any]) -> str | None:
    """Returns which of the attributes that a class must have is missing or of another kind; None where none is."""
    for name in ("name", "citation"):
        if not isinstance(getattr(found, name, None), str):
            return f"a class attribute {name!r}, a text"
    settings = getattr(found, "Settings", None)
    frozen = isinstance(settings, type) and dataclasses.is_dataclass(settings)
    return None if frozen else "a class attribute 'Settings', a frozen dataclass"


def _problem(value: Any, kind: Any) -> str | None:
    """Returns the required type of a value that is not of its setting's type; only simple types are checked."""
    if dataclasses.is_dataclass(kind):
        return None if isinstance(value, Mapping) else f"values by name, got {show(value)}"
    # A whole number will do for a float, and True is no number.
    fits = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}.get(kind)
    if fits is None or (isinstance(value, fits) and isinstance(value, bool) <= (kind is bool)):
        return None
    return f"of type {kind.__name__}, got {show(value)}"


def _known(name: str, known: list[str]) -> str:
    return f"use one of {', '.join(known)}{nearest(name, known)}"
