"""The provenance of a run: everything that its distilled set, or its teacher, depends on."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssdd_hub.hub.licences import derive_licence
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import shareable_name
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.statements import CLASS_LABELS, without_folders
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher
from ssdd_hub.text import redact_tokens

Facts = Mapping[str, Any]
# Settings that are no part of what a set is; of `minutes` the steps that it gave are.
_NOT_STATED = ("output", "run", "evaluate", "backbone_probe", "minutes")
# At the start of a word of the command line or of an entry of its lists, after `=` or `local-dir:`, or in quotes as in
# JSON; also of Windows. A comma may be part of a name, but not before another absolute path.
_ROOT = r"(?:~?/(?!/)|[A-Za-z]:[\\/](?!/)|\\\\)"
_ABSOLUTE_FOLDER = re.compile(rf"""(^|[=:"',\[]){_ROOT}(?:(?:(?!,\s*{_ROOT})[^"'])*[/\\])?(?=[^/\\"'])""")


def describe_run(
    config: Facts,
    source: Facts,
    teacher: Teacher | None,
    transform: TargetTransform,
    student_space: PixelSpace,
    student: Facts,
) -> dict[str, Any]:
    """Returns the provenance of a distilled set, but for what only the end of the run knows.

    `config` holds the resolved settings, `source` is `ImageBank.provenance`, `transform` maps features of the teacher
    to targets, and networks pre-trained on the set take real images in `student_space`. Without a teacher the targets
    are class labels, and no settings of teachers are stated; with one, none of the training on labels. `student` is
    `StudentBuilder.describe()`; the licence of weights is one of the set's too.
    """
    idle = ("teacher", "teacher_training") if teacher is None else ("accuracy",)
    # The name of stored weights is no architecture, which is all that a reader takes from a record.
    student = _shareable(without_folders({"student": student})["student"])
    config = {name: values for name, values in config.items() if name not in idle}
    if "weights" in student:
        config["student"] = student
    made = {"method": "krr-st", **_describe_origin(config, source), "student": student}
    made |= _describe_targets(source, teacher, transform, student_space)
    if "license" in student:
        made["license"] = derive_licence(made["license"], student["license"])
    return made


def describe_selection(
    method: str,
    selection: Facts,
    source: Facts,
    teacher: Teacher | None,
    transform: TargetTransform,
    student_space: PixelSpace,
) -> dict[str, Any]:
    """Returns the provenance of images that `methods.SELECTIONS[method]` chose; `selection` has its settings too."""
    return {
        "method": f"selection/{method}",
        "selection": _shareable(dict(selection)),
        "seed": selection["seed"],
        "source": {**source, "name": shareable_name(str(source["name"]))},
        "versions": describe_versions(),
        **_describe_targets(source, teacher, transform, student_space),
    }


def describe_training(config: Facts, source: Facts) -> dict[str, Any]:
    """Returns the provenance of a teacher, but for what its training knows, from its settings and source."""
    parts = {name: config[name] for name in ("data", "teacher", "teacher_training", "run", "seed")}
    return {**_describe_origin(parts, source), "license": source["license"]}


def describe_command() -> str:
    """Returns the command that started the recipe, without absolute paths and Hub tokens."""
    return shlex.join(["accelerate", "launch", f"recipes/{Path(sys.argv[0]).name}", *map(_shareable, sys.argv[1:])])


def _describe_origin(config: Facts, source: Facts) -> dict[str, Any]:
    settings = {name: values for name, values in config.items() if name not in _NOT_STATED}
    settings["run"] = {"mixed_precision": config["run"]["mixed_precision"]}
    settings["data"] = {**settings["data"], "name": shareable_name(settings["data"]["name"])}
    # Where pixels are kept, which is no part of what the set is.
    settings["data"].pop("cache", None)
    return {
        "settings": _shareable(without_folders(settings)),
        "seed": config["seed"],
        "source": {**source, "name": shareable_name(str(source["name"]))},
        "versions": describe_versions(),
        "command": describe_command(),
    }


def _describe_targets(
    source: Facts, teacher: Teacher | None, transform: TargetTransform, student_space: PixelSpace
) -> dict[str, Any]:
    if teacher is None:
        of, licences = {"targets": CLASS_LABELS}, [source["license"]]
    else:
        of = {"teacher": _shareable({**teacher.identity(), **teacher.public_provenance()})}
        licences = [source["license"], teacher.license]
    return {
        **of,
        "target_transform": transform.describe(),
        "student_pixel_space": student_space.to_dict(),
        "license": derive_licence(*licences),
    }


def _shareable(value: Any) -> Any:
    """Returns JSON with absolute paths cut to their last part and Hub tokens redacted."""
    if isinstance(value, dict):
        return {key: _shareable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return list(map(_shareable, value))
    return redact_tokens(_ABSOLUTE_FOLDER.sub(r"\1", value)) if isinstance(value, str) else value
