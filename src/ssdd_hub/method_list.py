"""List of `ssdd-hub methods`: every method, parameterisation and objective that is installed."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from ssdd_hub.bounds import Settings
from ssdd_hub.distill.methods.registry import METHODS
from ssdd_hub.distill.parameterisations.registry import PARAMETERISATIONS
from ssdd_hub.errors import InputError
from ssdd_hub.teachers.objectives.base import Objective
from ssdd_hub.teachers.objectives.registry import OBJECTIVES, find_objective, list_objectives
from ssdd_hub.text import first_line


def describe_methods() -> list[str]:
    """Returns lines with the paper, the settings with their defaults, the status and the purpose of each, by kind.

    The purpose is the first line of its module.

    Those of other packages are imported; where that fails, the status says why.
    """
    kinds: list[tuple[str, list[str], Mapping[str, Any], Callable[[str], Any]]] = [
        ("methods, for --method NAME --method.args '{SETTING: VALUE}'", METHODS.names(), METHODS.known, METHODS.find),
        (
            "parameterisations, for --parameterisation NAME --parameterisation.args '{SETTING: VALUE}'",
            PARAMETERISATIONS.names(),
            PARAMETERISATIONS.known,
            PARAMETERISATIONS.find,
        ),
        (
            "objectives of teachers, for --objective NAME --teacher-training.objective-args '{SETTING: VALUE}'",
            list_objectives(),
            OBJECTIVES,
            find_objective,
        ),
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
    purpose = (sys.modules[found.__module__].__doc__ or found.__doc__ or "not stated").strip().partition("\n")[0]
    facts = {"paper": found.citation, "settings": settings or "none", "status": status, "purpose": purpose}
    return [f"{name}: {fact}" for name, fact in facts.items()]


def _settings(found: Any) -> dict[str, Any]:
    """Returns the settings of a class with their defaults; of nested ones, the options of their section."""
    if issubclass(found, Objective):
        own = {name: entry.default for name, entry in signature(found.__init__).parameters.items()}
        named = {name: value for name, value in own.items() if value is not signature(found).empty}
        return {**{name: getattr(found, name) for name in found.declared}, **named}
    values = {}
    for entry in dataclasses.fields(found.Settings):
        made = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
        if entry.init and not entry.metadata.get("given"):
            section = f"--{made.option('*')}" if isinstance(made, Settings) else made
            values[entry.name] = "required" if made is dataclasses.MISSING else section
    return values
