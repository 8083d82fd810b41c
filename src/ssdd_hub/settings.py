"""Settings of a recipe: YAML files and a command line onto a dataclass of dataclasses, all mistakes at once."""

import dataclasses
import json
import os
import re
import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import is_dataclass
from difflib import get_close_matches
from inspect import formatannotation
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from ssdd_hub.bounds import plain_type
from ssdd_hub.errors import InputError, SettingsError, nearest, require
from ssdd_hub.plain_yaml import MISTAKES, SettingsDumper, SettingsLoader
from ssdd_hub.setting_files import find_file, read_file
from ssdd_hub.setting_values import read_value
from ssdd_hub.text import refuse_tokens, show

Config = TypeVar("Config")
_NAME = re.compile("--?[A-Za-z]")  # a number may be negative, so a dash alone does not make a name
_NUMBERS = re.compile(r"[-+.0-9eE]+( *, *[-+.0-9eE]+)+")  # a list of them
_HOME = re.compile("(?<=^local-dir:)~(?=/|$)|^~(?=/|$)")
_MOST_HINTS = 20  # problems after which no nearest name is searched, which takes long
_SWITCHES = ("help", "h", "print_config")
Given = tuple[str, Any]  # a dotted name, and text of the command line or what a YAML file holds


def parse_config(
    config_class: type[Config],
    default: Path | None,
    argv: Sequence[str] | None = None,
    description: str | None = None,
    stated: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {},
    folder: Path | None = None,
) -> Config:
    """Reads a recipe's settings: the dataclass defaults, then YAML files, then the command line.

    `--data.image-size 32`, `--data.image-size=32` and, for switches, `--teacher.pretrained` are understood. A later
    dictionary replaces an earlier one; `--teacher.model-args.NAME VALUE` changes one entry. A file or command line
    that names another network, objective or method than those before it takes no arguments from them. A list is
    written `a,b`, one of strings also one by one, `--set a --set b`. The class may have two class variables: `SHORT`,
    other names for the command line, and `RENAMED`, from old names of settings and sections to present ones: an old
    name, which no present setting may have, still works, with a `FutureWarning`.

    Args:
        config_class: A dataclass of dataclasses, such as `DistillConfig`.
        default: The YAML file that is read when no `--config` is given; None for none.
        argv: Arguments; the process's own when None.
        description: Shown by `--help`.
        stated: Given the settings that are given, by dotted name, returns those that follow from them, nested as in
            a YAML file: they come between the dataclass defaults and what is given.
        folder: Its YAML files are also known by their names alone, `--config photos`; by default that of `default`.

    Returns:
        The settings, validated. `--help`, which lists the sections, `--help SECTION`, `--help all` and
        `--print-config` print and exit instead.

    Raises:
        InputError: A YAML file cannot be read.
        SettingsError: Something is unknown, of the wrong type or out of range; every such thing is reported.
    """
    reader = _Reader(config_class)
    arguments = list(reader.split(sys.argv[1:] if argv is None else argv))
    names = {name for name, _ in arguments}
    folder = default.parent if default and not folder else folder
    files = [find_file(value, folder) for name, value in arguments if name == "config"]
    files = files or list(filter(None, [default]))
    settings = [entry for entry in arguments if entry[0] not in ("config", *_SWITCHES)]
    sources = [*(reader.once(path, reader.flatten(read_file(path))) for path in files), settings]
    given = reader.join(sources)
    if names & {"help", "h"}:
        section = next(value for name, value in reversed(arguments) if name in ("help", "h"))
        values = reader.type_values(given)
        with suppress(InputError):  # what cannot be read is told when the recipe runs
            values = reader.type_values([*reader.rename(reader.flatten(stated(values))), *given])
        _build_parser(config_class, files, description, values, section).print_help()
        raise SystemExit(0)
    for old in sorted(reader.old_names):
        warnings.warn(
            f"{old} is now {reader.renamed[old]}; the old name goes with the next release", FutureWarning, stacklevel=2
        )
    values = reader.type_values(given)
    if not reader.problems:
        values = reader.type_values(reader.join([reader.flatten(stated(values)), given]))
    config: Config = _build(config_class, values, reader.problems)
    if reader.problems:
        raise SettingsError(reader.problems)
    # They are stored in the run folder, told to trackers, and become part of records and cards.
    texts = dict(_texts(to_dict(config)))
    unfit = (name for name, text in texts.items() if re.search("[\0\ud800-\udfff]", text))
    require(*((False, f"{name} must be text that UTF-8 can hold, without NUL") for name in unfit))
    refuse_tokens(texts)
    if "print_config" in names:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def _at_home(value: Any) -> Any:
    """Returns a value with the user's home in place of a `~` that begins it: shells leave that of `--output=~/x`."""
    if isinstance(value, list):
        return list(map(_at_home, value))
    return _HOME.sub(lambda found: os.path.expanduser("~"), value) if isinstance(value, str) else value


def list_options(config_class: Any) -> list[str]:
    """Returns the options of a recipe's command line."""
    names = ["config", *_SWITCHES, *getattr(config_class, "SHORT", {}), *_kinds(config_class)]
    return [f"--{name.replace('_', '-')}" for name in names if name != "h"]


def to_yaml(config: Any) -> str:
    """Returns the resolved settings as YAML that `--config` accepts."""
    return yaml.dump(to_dict(config), Dumper=SettingsDumper, sort_keys=False, allow_unicode=True)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the resolved settings as nested dictionaries of JSON values."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields each text among settings, names in dictionaries too, by the setting's dotted name."""
    if isinstance(value, dict):
        yield f"a name in {name or 'the settings'}", "\n".join(value)
        for key, part in value.items():
            yield from _texts(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        yield name, "\n".join(part if isinstance(part, str) else json.dumps(part) for part in value)
    elif isinstance(value, str):
        yield name, value


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a recipe's docstring, which are commands."""


def _build_parser(
    config_class: Any, files: Sequence[Path], description: str | None, values: Mapping[str, Any], shown: str
) -> ArgumentParser:
    """Returns a parser for its help: of one section, of `all`, or of what stands in none; defaults are `values`."""
    sections: dict[str, Any] = {
        entry.name: entry for entry in dataclasses.fields(config_class) if is_dataclass(entry.type)
    }
    heads = {name: (entry.type.__doc__ or "").splitlines()[0].rstrip(".") for name, entry in sections.items()}
    shown = shown.replace("-", "_")
    if shown and shown not in (*sections, "all"):
        hint = nearest(shown, sections)
        raise InputError(f"--help takes all, or a section, one of {', '.join(sections)}; got {shown!r}{hint}")
    short = getattr(config_class, "SHORT", {}).items()
    notes = ["Dashes and underscores in names are the same."]
    notes[0] += "".join(f" --{name} is short for --{setting.replace('_', '-')}." for name, setting in short)
    if not shown:
        width = max(map(len, heads), default=0)
        listed = "\n".join(f"  {name:<{width}}  {head.partition(';')[0]}" for name, head in heads.items())
        notes = ["sections, whose settings --help SECTION lists, and --help all those of all:", listed, "", *notes]
    parser = ArgumentParser(
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
        description=description if shown in ("", "all") else None,
        epilog="\n".join(notes),
        formatter_class=_Help,
    )
    if shown in ("", "all"):
        text = "YAML of settings, or its name in recipes/configs; the last one wins"
        parser.add_argument("--config", metavar="FILE", default=", ".join(map(str, files)) or None, help=text)
        parser.add_argument("--print-config", action="store_true", help="print the resolved settings and exit")
        parser.add_class_arguments(config_class, skip=set(sections))
        parser.set_defaults({name: value for name, value in values.items() if "." not in name})
    for name, section in sections.items():
        if shown not in (name, "all"):
            continue
        group = parser.add_argument_group(f"{name}: {heads[name]}")
        # Help shows types, and the rules that annotate them have no text.
        entries = [(entry.name, plain_type(entry.type), copy(entry)) for entry in dataclasses.fields(section.type)]
        plain = dataclasses.make_dataclass(name, entries, namespace={"__doc__": section.type.__doc__})
        group.add_class_arguments(plain, name, as_group=False)
        # The default of a section is not always that of its class, and a file comes before both.
        factory: Any = section.default_factory
        defaults = {f"{name}.{entry}": value for entry, value in vars(factory()).items()}
        parser.set_defaults({entry: values.get(entry, value) for entry, value in defaults.items()})
    return parser


def _kinds(config_class: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the type of every setting by its dotted name."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config_class):
        name = f"{prefix}{entry.name}"
        found |= _kinds(entry.type, f"{name}.") if is_dataclass(entry.type) else {name: plain_type(entry.type)}
    return found


def _within(name: str, parents: Iterable[str]) -> str | None:
    """Returns which of some settings or sections a dotted name is, or is inside of."""
    return next((parent for parent in parents if f"{name}.".startswith(f"{parent}.")), None)


class _Reader:
    """Reads settings of one recipe from command line and YAML, and notes all mistakes in `problems`."""

    def __init__(self, config_class: Any) -> None:
        self.kinds = _kinds(config_class)
        self.short: Mapping[str, str] = getattr(config_class, "SHORT", {})
        renamed: Mapping[str, str] = getattr(config_class, "RENAMED", {})
        # A setting comes before the section that it was in.
        self.renamed = {old: renamed[old] for old in sorted(renamed, key=len, reverse=True)}
        self.old_names: set[str] = set()
        self.problems: list[str] = []
        sections: list[Any] = [entry for entry in dataclasses.fields(config_class) if is_dataclass(entry.type)]
        # What arguments are for, by their names, and which is the default.
        self.owners = {
            f"{entry.name}.{arguments}": (f"{entry.name}.{owner}", getattr(entry.default_factory(), owner))
            for entry in sections
            for arguments, owner in getattr(entry.type, "arguments_of", {}).items()
        }

    def resolve(self, name: str) -> str:
        """Returns a setting's present name, with underscores; the names of a dictionary's entries stay as they are."""
        plain = name.replace("-", "_")
        old = _within(plain, self.renamed)
        if old:
            plain, name = (self.renamed[old] + text[len(old) :] for text in (plain, name))
        setting = _within(plain, self.kinds)
        return setting + name[len(setting) :] if setting and self.kinds[setting] == dict[str, Any] else plain

    def split(self, argv: Sequence[str]) -> Iterator[Given]:
        """Yields names and values of a command line; lists come last, and a switch without a value is on."""
        rest, lists = list(argv), dict[str, str]()
        while rest:
            token = rest.pop(0)
            if not _NAME.match(token):
                self.problems.append(f"a setting is written --name value; got {token!r} alone")
                continue
            typed, equals, value = token.lstrip("-").partition("=")
            plain = typed.replace("-", "_")
            plain = self.short.get(plain, plain)
            kind = self.kinds.get(self.resolve(plain))
            # `--help SECTION` is the only one of the switches with a value.
            takes = plain not in _SWITCHES or plain in ("help", "h")
            if not equals and rest and takes and not _NAME.match(rest[0]):
                value = rest.pop(0)
            elif not equals and kind is bool:
                value = "true"
            elif not equals and (plain == "config" or _within(self.resolve(plain), self.kinds)):
                self.problems.append(f"--{typed} needs a value")
                continue
            if kind == list[str]:
                lists[plain] = f"{lists[plain]},{value}" if plain in lists else value
            else:
                # The names of entries of a dictionary may have dashes.
                yield plain if kind or plain in ("config", *_SWITCHES) else typed, value
        yield from lists.items()

    def flatten(self, content: Mapping[Any, Any], prefix: str = "") -> Iterator[Given]:
        """Yields what nested sections hold, by dotted name."""
        for key, value in content.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and self.resolve(name) not in self.kinds:
                yield from self.flatten(value, f"{name}.")
            # A section whose settings are all commented out is empty, and no mistake.
            elif value is not None or not self.inside(self.resolve(name)):
                yield name, value

    def once(self, path: Path, given: Iterable[Given]) -> list[Given]:
        """Returns what a file holds; refuses a setting that it gives twice, as with a dash and an underscore."""
        entries = list(given)
        counts = Counter(name.replace("-", "_") for name, _ in entries if self.resolve(name) in self.kinds)
        self.problems += (f"{name} is given twice in {path}: leave one" for name in counts if counts[name] > 1)
        return entries

    def join(self, sources: Iterable[Iterable[Given]]) -> list[Given]:
        """Returns what files and command line hold, by present names; other networks' arguments are left out."""
        given: list[Given] = []
        for source in sources:
            entries = list(self.rename(source))
            for arguments, (owner, default) in self.owners.items():
                named, before = dict(entries).get(owner), dict(given).get(owner, default)
                if named not in (None, before):
                    given = [entry for entry in given if not _within(entry[0], [arguments])]
            given += entries
        return given

    def rename(self, given: Iterable[Given]) -> Iterator[Given]:
        """Yields what one file or command line holds by present names; refuses an old name beside the new one."""
        found: dict[str, str] = {}
        for name, value in given:
            present, old = self.resolve(name), _within(name.replace("-", "_"), self.renamed)
            self.old_names |= {old} if old else set()
            spelt = name if old else present
            first = found.setdefault(present, spelt)
            if (first == present) != (spelt == present):
                other = spelt if old else first
                self.problems.append(f"{present} is also given by its old name, {other}: leave that one out")
            yield present, value

    def type_values(self, given: Iterable[Given]) -> dict[str, Any]:
        """Returns settings of their types, a later one in place of an earlier one; notes what is unknown or unfit."""
        values: dict[str, Any] = {}
        for name, value in given:
            setting = _within(name, self.kinds)
            kind, entry = self.kinds.get(setting or ""), name[len(setting or "") + 1 :]
            if not setting or entry and kind != dict[str, Any]:
                self.problems.append(self._unknown(name))
                continue
            try:
                if isinstance(value, str) and kind == dict[str, Any]:
                    value = f"[{value}]" if entry and _NUMBERS.fullmatch(value) else value
                    value = yaml.load(value, SettingsLoader)
                value = _with_entry(values.get(setting), entry, value) if entry else read_value(value, kind)
                values[setting] = _at_home(value)
            except (ArgumentError, *MISTAKES) as error:
                hint = f": {error}" if type(error) is ValueError else ""
                self.problems.append(f"{name} must be of type {formatannotation(kind)}, got {show(value)}{hint}")
        return values

    def inside(self, section: str) -> list[str]:
        """Returns the settings of a section."""
        return [kind for kind in self.kinds if kind.startswith(f"{section}.")]

    def _unknown(self, name: str) -> str:
        if len(self.problems) >= _MOST_HINTS:
            return f"{name} is not a setting"
        if self.inside(name):
            return f"{name} is a section; give its settings one by one, such as {self.inside(name)[0]}"
        section, _, last = name.rpartition(".")
        ends: dict[str, list[str]] = {}
        # Short names lead to what they are short for.
        for word, kind in {**dict(zip(self.kinds, self.kinds, strict=True)), **self.short}.items():
            ends.setdefault(word.rpartition(".")[2], []).append(kind)
        alike = [kind for end in get_close_matches(last, ends, cutoff=0.7) for kind in ends[end]]
        near = (
            [kind for kind in self.kinds if _within(name, [kind])]
            or ends.get(last)
            or [kind for kind in alike if section and kind.startswith(f"{section}.")]
            or [kind for kind in self.kinds if kind.startswith(name) or kind.rpartition(".")[2].startswith(last)]
            or alike
            or get_close_matches(name, self.kinds, n=1, cutoff=0.0)
        )
        names = list(dict.fromkeys(near))[:3]
        return f"{name} is not a setting; the nearest is {' or '.join(names)} (--help all lists them)"


def _with_entry(values: Any, path: str, value: Any) -> dict[str, Any]:
    """Returns a dictionary with the entry `name`, or `name.name` of one inside it, set."""
    name, _, rest = path.partition(".")
    values = values if isinstance(values, dict) else {}
    return {**values, name: _with_entry(values.get(name), rest, value) if rest else value}


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
