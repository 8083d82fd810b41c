"""Settings of a recipe: YAML files and command line onto the dataclasses that the parts keep beside themselves.

jsonargparse types, converts and documents the settings; this module only gathers them and reports every mistake at
once.
"""

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ssdd_hub.distiller import DistillerSettings
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluate import EvaluateSettings
from ssdd_hub.images import DataSettings
from ssdd_hub.pool import PoolSettings
from ssdd_hub.pretrain import PretrainSettings
from ssdd_hub.run_folder import RunSettings
from ssdd_hub.students import StudentSettings
from ssdd_hub.targets import TargetSettings
from ssdd_hub.teacher import TeacherSettings

Config = TypeVar("Config")


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides a distillation run.

    Attributes:
        data: The source images.
        teacher: The network whose features are the targets.
        pretrain: How the teacher is trained, unless it is ready made.
        targets: How its features become targets.
        student: The network that distils and is pre-trained on the result.
        pool: The online students.
        distiller: The outer problem.
        evaluate: What the result is measured by.
        run: Where the run is kept, and how often.
        seed: Seed of everything random.
        output: The run folder; `runs/NAME` when not given, after the last part of `data.name`.
    """

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    run: RunSettings = field(default_factory=RunSettings)
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        if self.output is None:
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.data.name).name).strip(".-") or "run"
            object.__setattr__(self, "output", f"runs/{name}")


def parse_config(
    config_class: type[Config], default: Path, argv: Sequence[str] | None = None, description: str | None = None
) -> Config:
    """Reads a recipe's settings: the dataclass defaults, then YAML files, then the command line.

    Args:
        config_class: A dataclass of dataclasses, such as `DistillConfig`.
        default: The YAML file that is read when no `--config` is given.
        argv: Arguments; the process's own when None. `--data.image-size 32`, `--data.image-size=32` and, for switches,
            `--teacher.pretrained` are understood.
        description: Shown by `--help`.

    Returns:
        The settings, validated. `--help` and `--print-config` print and exit instead.

    Raises:
        SettingsError: Something is unknown, of the wrong type or out of range; every such thing is reported.
    """
    arguments = list(_tokens(sys.argv[1:] if argv is None else argv))
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", help=f"YAML file of settings; may be given several times (default: {default})")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and exit")
    parser.add_class_arguments(config_class)
    if any(key in ("help", "h") for key, _ in arguments):
        parser.print_help()
        raise SystemExit(0)
    files = [Path(value or "") for key, value in arguments if key == "config"] or [default]
    overrides = [(key, value) for key, value in arguments if key not in ("config", "print_config")]
    settings = [*_read_files(files, _leaves(config_class)), *_switches(overrides, config_class)]
    config = _build(parser, config_class, settings)
    if any(key == "print_config" for key, _ in arguments):
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def to_yaml(config: Any) -> str:
    """Returns the resolved settings as YAML that `--config` accepts."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the resolved settings as nested dictionaries of JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def _tokens(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Splits a command line into keys, dashes as underscores, and values; None where a key has no value."""
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if not token.startswith("-") or token in ("-", "--"):
            raise SettingsError([f"a setting is written --name value; got {token!r} alone"])
        key, equals, value = token.lstrip("-").partition("=")
        if not equals and position < len(argv) and not re.match(r"--?[A-Za-z]", argv[position]):
            value, equals = argv[position], "="
            position += 1
        yield key.replace("-", "_"), value if equals else None


class _Loader(yaml.SafeLoader):
    """A safe loader to which 1e-4 is a number, as in YAML 1.2 and unlike PyYAML's YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def _read_files(files: Iterable[Path], leaves: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields key and value, as text, of each setting in YAML files."""
    for path in files:
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--config {path} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise InputError(f"--config {path} is not YAML: {error}") from error
        if not isinstance(content or {}, dict):
            raise InputError(f"--config {path} must map names to settings, got a {type(content).__name__}")
        yield from _flatten(content or {}, leaves, "")


def _flatten(content: dict[str, Any], leaves: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        key = f"{prefix}{name}".replace("-", "_")
        if isinstance(value, dict) and key not in leaves:
            yield from _flatten(value, leaves, f"{key}.")
        else:
            yield key, value if isinstance(value, str) else json.dumps(value)


def _leaves(config_class: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the dotted name of every setting with its default's type."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(entry.type):
            found |= _leaves(entry.type, f"{prefix}{entry.name}.")
        else:
            found[f"{prefix}{entry.name}"] = entry.type
    return found


def _switches(arguments: Iterable[tuple[str, str | None]], config_class: Any) -> Iterator[tuple[str, str]]:
    """Gives `true` to switches without a value."""
    leaves = _leaves(config_class)
    for key, value in arguments:
        if value is None and leaves.get(key) is not bool and key in leaves:
            raise SettingsError([f"--{key.replace('_', '-')} needs a value"])
        yield key, "true" if value is None else value


def _build(parser: ArgumentParser, config_class: type[Config], settings: Iterable[tuple[str, str]]) -> Config:
    """Types every setting and builds the dataclasses; collects what is wrong on the way."""
    leaves, problems, accepted = _leaves(config_class), [], []
    for key, value in settings:
        mapping = next((leaf for leaf in leaves if key.startswith(f"{leaf}.") and "dict" in str(leaves[leaf])), None)
        if key not in leaves and mapping is None:
            problems.append(_unknown(key, leaves))
            continue
        try:
            parser.parse_args([f"--{key}={value}"])
            accepted.append(f"--{key}={value}")
        except ArgumentError as error:
            problems.append(f"{key}: {' '.join(str(error).split())}")
    typed = parser.parse_args(accepted).as_dict()
    config = _instantiate(config_class, typed, problems)
    if config is None or problems:
        raise SettingsError(problems)
    return config


def _instantiate(config_class: type[Config], values: dict[str, Any], problems: list[str]) -> Config | None:
    """Builds nested dataclasses inside out; None, and the problems noted, where a value is out of range."""
    built = {}
    for entry in dataclasses.fields(config_class):  # type: ignore[arg-type]
        value = values[entry.name]
        built[entry.name] = (
            _instantiate(entry.type, value, problems)  # type: ignore[arg-type]
            if dataclasses.is_dataclass(entry.type)
            else value
        )
    try:
        return (
            config_class(**built)
            if not any(value is None and _is_group(config_class, name) for name, value in built.items())
            else None
        )
    except SettingsError as error:
        problems += error.problems
        return None


def _is_group(config_class: Any, name: str) -> bool:
    return any(
        entry.name == name and dataclasses.is_dataclass(entry.type) for entry in dataclasses.fields(config_class)
    )


def _unknown(key: str, leaves: dict[str, Any]) -> str:
    by_name = [leaf for leaf in leaves if leaf.split(".")[-1] == key.split(".")[-1]]
    nearest = by_name or difflib.get_close_matches(key, leaves, n=1, cutoff=0.0)
    return f"{key} is not a setting; the nearest is {nearest[0]} (--help lists all)"
