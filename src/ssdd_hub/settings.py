"""Settings of a recipe: YAML files and command line onto the dataclasses that the parts keep beside themselves.

jsonargparse types and documents the settings; this module only gathers them and reports every mistake at once.
"""

import dataclasses
import difflib
import json
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import is_dataclass
from functools import cache
from inspect import formatannotation
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from ssdd_hub.bounds import plain_type
from ssdd_hub.errors import InputError, SettingsError

Config = TypeVar("Config")
_NAME = re.compile("--?[A-Za-z]")  # a number may be negative, so a dash alone does not make a name
Kinds = dict[str, Any]  # the type of every setting, by its dotted name
Given = tuple[str, Any]  # a dotted name, and text of the command line or what a YAML file holds


def parse_config(
    config_class: type[Config],
    default: Path | None,
    argv: Sequence[str] | None = None,
    description: str | None = None,
    stated: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {},
) -> Config:
    """Reads a recipe's settings: the dataclass defaults, then YAML files, then the command line.

    A setting that is a dictionary is replaced by a later one; `--teacher.model-args.NAME VALUE` changes one entry. A
    list of strings is written `a,b`, or one by one, `--set a --set b`. The class may give settings a short name for
    the command line in a class variable `SHORT`.

    Args:
        config_class: A dataclass of dataclasses, such as `DistillConfig`.
        default: The YAML file that is read when no `--config` is given; None for none.
        argv: Arguments; the process's own when None. `--data.image-size 32`, `--data.image-size=32` and, for switches,
            `--teacher.pretrained` are understood.
        description: Shown by `--help`.
        stated: Called with the settings that are given, by dotted name, and returns those that follow from them,
            nested as in a YAML file: they come between the dataclass defaults and what is given.

    Returns:
        The settings, validated. `--help` and `--print-config` print and exit instead.

    Raises:
        InputError: A YAML file cannot be read.
        SettingsError: Something is unknown, of the wrong type or out of range; every such thing is reported.
    """
    kinds, problems = _kinds(config_class), list[str]()
    short = getattr(config_class, "SHORT", {})
    arguments = _read_command_line(sys.argv[1:] if argv is None else argv, kinds, short, problems)
    asked = {name for name, _ in arguments}
    if asked & {"help", "h"}:
        _build_parser(config_class, default, description).print_help()
        raise SystemExit(0)
    files = [Path(value) for name, value in arguments if name == "config"] or list(filter(None, [default]))
    given = [setting for path in files for setting in _read_file(path, kinds)]
    given += _joined([entry for entry in arguments if entry[0] not in ("config", "print_config")], kinds)
    values = _type_values(given, kinds, problems)
    if not problems:
        values = _type_values([*_flatten(stated(values), kinds, ""), *given], kinds, problems)
    config: Config = _build(config_class, values, problems)
    if problems:
        raise SettingsError(problems)
    if "print_config" in asked:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def to_yaml(config: Any) -> str:
    """Returns the resolved settings as YAML that `--config` accepts."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the resolved settings as nested dictionaries of JSON values."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a recipe's docstring, which are commands."""


def _build_parser(config_class: Any, default: Path | None, description: str | None) -> ArgumentParser:
    short = getattr(config_class, "SHORT", {}).items()
    parser = ArgumentParser(
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
        description=description,
        epilog="Dashes and underscores in names are the same."
        + "".join(f" --{name} is short for --{setting}." for name, setting in short),
        formatter_class=_Help,
    )
    parser.add_argument(
        "--config", metavar="FILE", default=default and str(default), help="YAML of settings; the last one wins"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and exit")
    sections = {entry.name: entry.type for entry in dataclasses.fields(config_class) if is_dataclass(entry.type)}
    parser.add_class_arguments(config_class, skip=set(sections))
    for name, section in sections.items():
        group = parser.add_argument_group(f"{name}: {(section.__doc__ or '').splitlines()[0].rstrip('.')}")
        group.add_class_arguments(_without_rules(section), name, as_group=False)
    return parser


def _without_rules(section: Any) -> type:
    """Returns the same dataclass with plain types: help shows types, and rules have no text."""
    entries = [(entry.name, plain_type(entry.type), copy(entry)) for entry in dataclasses.fields(section)]
    return dataclasses.make_dataclass(section.__name__, entries, namespace={"__doc__": section.__doc__})


def _kinds(config_class: Any, prefix: str = "") -> Kinds:
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config_class):
        name = f"{prefix}{entry.name}"
        found |= _kinds(entry.type, f"{name}.") if is_dataclass(entry.type) else {name: plain_type(entry.type)}
    return found


def _setting(name: str, kinds: Kinds) -> str:
    """Returns what a name is an entry of: `teacher.model_args.channels` belongs to `teacher.model_args`."""
    return next((kind for kind in kinds if f"{name}.".startswith(f"{kind}.")), name)


def _read_command_line(
    argv: Sequence[str], kinds: Kinds, short: Mapping[str, str], problems: list[str]
) -> list[Given]:
    """Splits a command line into names and values, short names made long; a switch without a value is on."""
    given, rest = [], list(argv)
    while rest:
        token = rest.pop(0)
        if not _NAME.match(token):
            problems.append(f"a setting is written --name value; got {token!r} alone")
            continue
        name, equals, value = token.lstrip("-").partition("=")
        name = _underscored(name, kinds)
        if not equals and name in ("help", "h", "print_config"):
            value = "true"
        elif not equals and rest and not _NAME.match(rest[0]):
            value = rest.pop(0)
        elif not equals and kinds.get(name) is bool:
            value = "true"
        elif not equals and (_setting(name, kinds) in kinds or name in ("config", *short)):
            problems.append(f"--{name.replace('_', '-')} needs a value")
            continue
        given.append((short.get(name, name), value))
    return given


def _underscored(name: str, kinds: Kinds) -> str:
    """Returns a name with underscores for dashes; the names of entries of a dictionary stay what they are."""
    plain = name.replace("-", "_")
    setting = _setting(plain, kinds)
    return setting + name[len(setting) :] if kinds.get(setting) == dict[str, Any] else plain


def _joined(arguments: Sequence[Given], kinds: Kinds) -> Iterator[Given]:
    """Yields the arguments, those of a list of strings as one: `--set a --set b` is `--set a,b`."""
    lists = dict.fromkeys(name for name, _ in arguments if kinds.get(name) == list[str])
    for name, value in arguments:
        if name not in lists:
            yield name, value
    for name in lists:
        values = [value for other, value in arguments if other == name]
        yield name, values[0] if len(values) == 1 else ",".join(values)


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does, unlike PyYAML: 1e-4 is a number, `no` and a date are words. Names are unique."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":bool", ":timestamp"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuses a name that is there twice, which PyYAML would let the second win."""
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts strings that `_Loader` would read as numbers in quotes."""


_BOOL, _FLOAT = re.compile("(true|True|TRUE|false|False|FALSE)$"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _read_file(path: Path, kinds: Kinds) -> Iterator[Given]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, (dict, type(None))):
        raise InputError(f"--config {path} must map names to settings, got a {type(content).__name__}")
    return _flatten(content or {}, kinds, "")


def _flatten(content: Mapping[Any, Any], kinds: Kinds, prefix: str) -> Iterator[Given]:
    for name, value in content.items():
        key = f"{prefix}{name}".replace("-", "_")
        if isinstance(value, dict) and key not in kinds:
            yield from _flatten(value, kinds, f"{key}.")
        # A section whose settings are all commented out is empty, and no mistake.
        elif value is not None or not _inside(key, kinds):
            yield key, value


def _inside(section: str, kinds: Kinds) -> list[str]:
    return [kind for kind in kinds if kind.startswith(f"{section}.")]


def _type_values(given: Sequence[Given], kinds: Kinds, problems: list[str]) -> dict[str, Any]:
    """Gives every setting its type, a later one in place of an earlier one; notes what is unknown or does not fit."""
    values: dict[str, Any] = {}
    for name, value in given:
        setting = _setting(name, kinds)
        kind, entry = kinds.get(setting), name[len(setting) + 1 :]
        if kind is None or entry and kind != dict[str, Any]:
            problems.append(_unknown(name, kinds))
            continue
        try:
            if isinstance(value, str) and kind == dict[str, Any]:
                value = yaml.load(value, _Loader)
            values[setting] = _with_entry(values.get(setting), entry, value) if entry else _typed(value, kind)
        except (ArgumentError, yaml.YAMLError, ValueError) as error:
            hint = f": {error}" if type(error) is ValueError else ""
            problems.append(f"{name} must be of type {formatannotation(kind)}, got {value!r}{hint}")
    return values


def _with_entry(values: Any, path: str, value: Any) -> dict[str, Any]:
    """Returns a dictionary with the entry `name`, or `name.name` of one inside it, set."""
    name, _, rest = path.partition(".")
    values = values if isinstance(values, dict) else {}
    return {**values, name: _with_entry(values.get(name), rest, value) if rest else value}


def _typed(value: Any, kind: Any) -> Any:
    """Returns text, or what a YAML file holds, as a value of a setting's type."""
    if kind == dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("write {name: value}")
        return value
    if kind in (str, str | None) and not isinstance(value, kind):
        # A number of YAML is not what was written: 012 is 10.
        raise ValueError("put it in quotes")
    text = value if isinstance(value, str) else json.dumps(value)
    if kind == list[str] and not text.startswith("["):
        text = f"[{text}]"
    return _parser_of(kind).parse_args([f"--value={text}"]).value


@cache
def _parser_of(kind: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def _build(config_class: Any, values: Mapping[str, Any], problems: list[str], prefix: str = "") -> Any:
    """Builds nested dataclasses inside out; None, and the problems noted, where a value is out of range."""
    arguments, before = {}, len(problems)
    for entry in dataclasses.fields(config_class):
        name = f"{prefix}{entry.name}"
        if is_dataclass(entry.type):
            # The default of a section is not always that of its class. It also stands in for a section that is wrong:
            # the mistakes of the others are reported too.
            factory: Any = entry.default_factory
            default = factory()
            own = {f"{name}.{setting}": value for setting, value in vars(default).items()}
            arguments[entry.name] = _build(entry.type, {**own, **values}, problems, f"{name}.") or default
        elif name in values:
            arguments[entry.name] = values[name]
    try:
        config = config_class(**arguments)
        return config if len(problems) == before else None
    except SettingsError as error:
        problems += error.problems
        return None


def _unknown(name: str, kinds: Kinds) -> str:
    """Names the nearest settings: those of a section, of the same last part, beginning alike, or else spelt alike."""
    inside = _inside(name, kinds)
    if inside:
        return f"{name} is a section; give its settings one by one, such as {inside[0]}"
    near = (
        [kind for kind in kinds if kind.rpartition(".")[2] == name.rpartition(".")[2]]
        or [kind for kind in kinds if kind.startswith(name)]
        or difflib.get_close_matches(name, kinds, n=1, cutoff=0.0)
    )
    return f"{name} is not a setting; the nearest is {' or '.join(near)} (--help lists all)"
