"""What is recorded of a run: everything that its distilled set, or its teacher, depends on."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssdd_hub.machine import describe_versions
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.targets import TargetTransform
from ssdd_hub.teacher import Teacher

# At the start of a word of the command line, after `=` or `local-dir:`, or in quotes as in JSON.
_ABSOLUTE_FOLDER = re.compile(r"""(^|[=:"'])~?/(?!/)(?:[^"']*/)?(?=[^/"'])""")


def describe_run(
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    teacher: Teacher,
    transform: TargetTransform,
    student_space: PixelSpace,
) -> dict[str, Any]:
    """Returns the provenance of a distilled set, but for what only the end of the run knows.

    Args:
        config: The resolved settings.
        source: `ImageBank.source`.
        teacher: The teacher.
        transform: What makes targets of its features.
        student_space: The space in which networks pre-trained on the set are to see real images.
    """
    return {
        "method": "krr-st",
        **_describe_origin(config, source),
        "teacher": _without_folders({**teacher.describe(), **teacher.origin()}),
        "target_transform": transform.describe(),
        "student": _without_folders(config["student"]),
        "student_pixel_space": student_space.to_dict(),
        "license": _license(source["license"], teacher.license),
    }


def describe_training(config: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the provenance of a teacher, but for what its training knows.

    Args:
        config: The resolved settings.
        source: `ImageBank.source`.
    """
    parts = {name: config[name] for name in ("data", "teacher", "pretrain", "run", "seed")}
    return {**_describe_origin(parts, source), "license": source["license"]}


def _describe_origin(config: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is recorded of every run: settings, seed, source, versions and the command."""
    settings = {name: values for name, values in config.items() if name not in ("output", "run", "evaluate")}
    settings["run"] = {"mixed_precision": config["run"]["mixed_precision"]}
    settings["data"] = {**settings["data"], "name": _shareable_name(settings["data"]["name"])}
    command = ["accelerate", "launch", f"recipes/{Path(sys.argv[0]).name}", *map(_without_folders, sys.argv[1:])]
    return {
        "settings": _without_folders(settings),
        "seed": config["seed"],
        "source": {**source, "name": _shareable_name(str(source["name"]))},
        "versions": describe_versions(),
        "command": shlex.join(command),
    }


def _shareable_name(name: str) -> str:
    """Returns a Hub id as it is, and of a local folder only its last part: a path means nothing elsewhere."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def _without_folders(value: Any) -> Any:
    """Returns JSON with absolute paths cut to their last part, since they tell of somebody's machine."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return _ABSOLUTE_FOLDER.sub(r"\1", value) if isinstance(value, str) else value


def _license(*licenses: str) -> str:
    """Returns the licence of what is derived from several parts: theirs if they agree, and otherwise unknown."""
    return licenses[0] if len(set(licenses)) == 1 else "unknown"
