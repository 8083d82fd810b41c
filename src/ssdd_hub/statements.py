"""The allow-list for what a record states of its making: student, teacher, source images and recipe.

Records may be untrusted: architectures known here, ids of the Hub, numbers and short words are used; addresses, paths
and anything that loads something else are refused.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ssdd_hub import arguments
from ssdd_hub.errors import InputError
from ssdd_hub.record import section
from ssdd_hub.record_schema import USE, Field, number
from ssdd_hub.text import HUB_ID

DIGITS = "digits"
_HUB_MODEL = re.compile(rf"hf[-_]hub:{HUB_ID.pattern}(@[\w./-]+)?", re.ASCII)
_TAGGED = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", re.ASCII)
_LONGEST_NAME = 200
LARGEST_SIDE = 1536  # pixels of what a stored model takes; timm's own take 1,024 at most
# Settings of source images that say which images they are; memory and the like are the reader's business.
_DATA = (
    *("name", "config", "revision", "split", "heldout_split", "heldout_fraction", "image_column", "label_column"),
    *("image_size", "mode", "max_images", "on_corrupt"),
)
CLASS_LABELS = "class labels"
"""What the record of a set states as its `targets` where these are of classes."""
_TEACHER = ("backbone", "pretrained", "features", "input_size", "mean", "std", "model_args")
_DECIDED = ("name", "num_targets", "num_classes", "in_chans", "image_size")

Fields = dict[str, Field]


def stated_student(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the network that a set was distilled with, None where none is stated.

    The `model_args` beside its `name` are what `build_student` takes; weights that it started from are left out.

    Raises:
        InputError: What is stated is not on the allow-list.
    """
    stated = section(provenance, "student")
    if not stated.get("name"):
        return None
    _refuse("student", stated, "name it by --students")
    features = {"features": stated["features"]} if stated.get("features") else {}
    return {"name": stated["name"], "model_args": {**dict(stated.get("model_args") or {}), **features}}


def of_labels(provenance: Mapping[str, Any]) -> bool:
    """Whether a record states that the targets are class labels, which are of no teacher."""
    return provenance.get("targets") == CLASS_LABELS


def stated_teacher(teacher: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the recorded settings of a ready-made teacher, a name of timm or on the Hub, or without a `backbone`.

    None for a teacher that is not available: a folder or file where the set was made, or one that was trained there.

    Raises:
        InputError: What is stated is not on the allow-list.
    """
    _refuse("teacher", teacher, "name it by --teacher.backbone", "settings.teacher")
    name = str(teacher.get("backbone", ""))
    if teacher.get("pretrained") is not True or teacher.get("checkpoint") or name.startswith("local-dir:"):
        return None
    if name and (not _HUB_MODEL.fullmatch(name) or ".." in name) and not _is_architecture(name):
        raise InputError(
            "the teacher of the record must be an architecture that timm knows here, or on the Hub; got "
            f"{arguments.show(name)}: give --teacher.backbone"
        )
    return {key: teacher[key] for key in _TEACHER if key in teacher}


def stated_source(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the recorded settings of source images that are the embedded digits or on the Hub, or without a `name`.

    None where they were a folder, or where a folder of that name is here: nothing tells that it holds these images,
    and a record does not choose which folders of this machine are read.

    Raises:
        InputError: What is stated is not on the allow-list.
    """
    _refuse("source", data, "name it by --source.name", "settings.data")
    name = str(data.get("name"))
    is_id = HUB_ID.fullmatch(name) or _TAGGED.fullmatch(name.replace("-", "_"))
    if "name" in data and name != DIGITS and (not is_id or Path(name).exists()):
        return None
    return {key: data[key] for key in _DATA if key in data}


def check_use(stated: Mapping[str, Any]) -> None:
    """Raises an `InputError` for a recipe for students with values of another type or out of range."""
    _refuse("use", stated, "use the set with settings of your own")


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's settings as they may be recorded: of folders elsewhere on the machine, only the last part."""
    cut = dict(settings)
    for part, key in (("data", "name"), ("teacher", "backbone"), ("teacher", "checkpoint"), ("student", "weights")):
        name = section(settings, part).get(key)
        if isinstance(name, str) and list(_text(name, key)):
            place = name.removeprefix("local-dir:")
            cut[part] = {**section(cut, part), key: name.removesuffix(place) + Path(place).name}
    return cut


def find_problems(provenance: Mapping[str, Any]) -> list[str]:
    """Returns all that the record of a set or teacher states and that must not be used, a sentence for each."""
    found = []
    for place in _PARTS:
        stated: Any = provenance
        for name in place.split("."):
            stated = section(stated, name)
        found += [f"{place}: {problem}" for problem in _problems(stated, place)] if stated else []
    found += [problem for problem in _nested_arguments(provenance, "") if problem not in found]
    if provenance.get("seed") is not None:
        found += number(provenance["seed"], "seed", whole=True)
    return found


def _refuse(what: str, stated: Mapping[str, Any], remedy: str, place: str | None = None) -> None:
    found = list(_problems(stated, place or what))
    if found:
        raise InputError(
            f"the {what} that the record states is not taken: {'; '.join(found)}. A record may not choose "
            f"what is loaded: {remedy}, or fetch the set from a source that you trust"
        )


def _problems(stated: Mapping[str, Any], place: str) -> Iterator[str]:
    for key, check in _PARTS[place].items():
        if key == _ALL:
            yield from check(stated, key)
        elif stated.get(key) is not None or check is _architecture:
            yield from check(stated.get(key), key)


def _text(value: Any, key: str) -> Iterator[str]:
    """Refuses addresses, absolute folders and ways out of a folder in the place of a name."""
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or not value.isprintable():
        yield f"{key} must be text of at most {_LONGEST_NAME} letters, got {arguments.show(value)}"
        return
    place = value.removeprefix("local-dir:")
    parts = re.split(r"[/\\]", place)
    if "://" in value or "::" in value or place.startswith(("/", "\\", "~")) or ".." in parts or place[1:3] == ":\\":
        yield f"{key} must be a name, no address and no folder of a machine, got {arguments.show(value)}"


def _arguments(value: Any, key: str) -> Iterator[str]:
    yield from (f"{key}: {problem}" for problem in arguments.find_problems(value or {}))


def _numbers(value: Any, key: str) -> Iterator[str]:
    yield from _arguments({key: value}, key)


def _architecture(value: Any, key: str) -> Iterator[str]:
    if not isinstance(value, str) or not arguments.ARCHITECTURE.fullmatch(value) or not _is_architecture(value):
        yield f"its {key} must be an architecture that timm knows here, got {arguments.show(value)}"


def _student_arguments(value: Any, key: str) -> Iterator[str]:
    decided = ", ".join(name for name in _DECIDED if isinstance(value, Mapping) and name in value)
    if decided:
        yield f"{key} must leave out {decided}, which the set decides"
    yield from _arguments(value, key)


def _objective_settings(stated: Any, key: str) -> Iterator[str]:
    yield from arguments.find_problems(
        {key: value for key, value in stated.items() if key not in ("name", "citation")}
    )


def _nested_arguments(value: Any, path: str) -> Iterator[str]:
    """Looks at arguments wherever else they stand in a record."""
    if isinstance(value, list):
        for part in value:
            yield from _nested_arguments(part, path)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if str(key).endswith("_args") and part:
                named = f"{path}: {key}" if path else str(key)
                yield from (f"{named}: {problem}" for problem in arguments.find_problems(part))
            else:
                yield from _nested_arguments(part, f"{path}.{key}" if path else str(key))


def _is_architecture(name: str) -> bool:
    # Imported here, since a set is read where timm is not installed; then no name can be used, and none is known.
    try:
        import timm
    except ImportError:
        return False
    return _TAGGED.fullmatch(name) is not None and bool(timm.is_model(name))


_ALL = "*"  # the check of a whole part
_STUDENT: Fields = {
    **{"name": _architecture, "model_args": _student_arguments},
    **dict.fromkeys(("features", "weights", "license"), _text),
}
_NAMED: Fields = dict.fromkeys(("name", "hub", "config", "revision"), _text)
_OBJECTIVE: Fields = {"name": _text, _ALL: _objective_settings}
_TRAINING: Fields = {"objective": _text, **dict.fromkeys(("objective_args", "view_args"), _arguments)}
# Of settings, their names of today and those of older records.
_PARTS: dict[str, Fields] = {
    "student": _STUDENT,
    "teacher": _NAMED,
    "teacher.source": _NAMED,
    "teacher.objective": _OBJECTIVE,
    "objective": _OBJECTIVE,
    "source": _NAMED,
    "use": USE,
    "settings.student": _STUDENT,
    "settings.teacher": {
        **dict.fromkeys(("backbone", "checkpoint", "features"), _text),
        "input_size": partial(number, whole=True, least=1, greatest=LARGEST_SIDE),
        **dict.fromkeys(("mean", "std"), _numbers),
        "model_args": _arguments,
    },
    "settings.data": dict.fromkeys(
        ("name", "config", "revision", "split", "heldout_split", "image_column", "label_column", "mode"), _text
    ),
    "settings.use": USE,
    **dict.fromkeys(("settings.teacher_training", "settings.pretrain"), _TRAINING),
}
