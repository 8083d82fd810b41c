"""What `ssdd-hub methods` lists: every method, parameterisation and objective that is installed."""

import dataclasses
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from ssdd_hub.distill.methods.registry import METHODS
from ssdd_hub.distill.parameterisations.registry import PARAMETERISATIONS
from ssdd_hub.errors import InputError
from ssdd_hub.teachers.objectives.base import Objective
from ssdd_hub.teachers.objectives.registry import OBJECTIVES, find_objective, list_objectives
from ssdd_hub.text import first_line


def describe_methods() -> list[str]:
    """Returns lines with the paper, the settings with their defaults and the status of each, by kind.

    Those of other packages are imported; where that fails, the status says why.
    """
    kinds: list[tuple[str, list[str], Mapping[str, Any], Callable[[str], Any]]] = [
        ("methods, for --method", METHODS.names(), METHODS.known, METHODS.find),
        (
            "parameterisations, for --parameterisation",
            PARAMETERISATIONS.names(),
            PARAMETERISATIONS.known,
            PARAMETERISATIONS.find,
        ),
        ("objectives of teachers, for --objective", list_objectives(), OBJECTIVES, find_objective),
    ]
    lines = list[str]()
    for title, names, ours, find in kinds:
        lines.append(title)
        for name in names:
            lines += [f"  {name}", *(f"    {fact}" for fact in _facts(name, find, name in ours))]
    return lines


def _facts(name: str, find: Callable[[str], Any], ours: bool) -> list[str]:
    try:
        found = find(name)
    except InputError as error:
        return [f"status: cannot be used: {first_line(error)}"]
    settings = ", ".join(f"{key}={value}" for key, value in _settings(found).items())
    status = "available" if ours else f"available, of the package {found.__module__.partition('.')[0]}"
    return [f"paper: {found.citation}", f"settings: {settings or 'none'}", f"status: {status}"]


def _settings(found: Any) -> dict[str, Any]:
    """Returns the settings of a class with their defaults; nested ones are left to their own section."""
    if issubclass(found, Objective):
        own = {name: entry.default for name, entry in signature(found.__init__).parameters.items()}
        named = {name: value for name, value in own.items() if value is not signature(found).empty}
        return {**{name: getattr(found, name) for name in found.declared}, **named}
    values = {}
    for entry in dataclasses.fields(found.Settings):
        made = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
        if entry.init and not dataclasses.is_dataclass(made):
            values[entry.name] = "required" if made is dataclasses.MISSING else made
    return values
