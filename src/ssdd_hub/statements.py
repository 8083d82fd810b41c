"""The allow-list for what a record states of its making: student, teacher, source images, recipe.

A record may come from a stranger. Of what it states as student, teacher, source images and recipe, architectures that
are known here, ids of the Hub, numbers and short words are used; addresses, paths and anything that loads something
else are refused. `find_problems` lists all of it, for the linter.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from ssdd_hub import arguments
from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import section
from ssdd_hub.text import HUB_ID

DIGITS = "digits"
_HUB_MODEL = re.compile(rf"hf[-_]hub:{HUB_ID.pattern}(@[\w./-]+)?", re.ASCII)
_TAGGED = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", re.ASCII)
_LONGEST_NAME = 200
LARGEST_SIDE = 1536  # pixels of what a stored model takes; timm's own take 1,024 at most
# Of the settings of source images those that say which images they are; memory and the like are the reader's business.
_DATA = (
    *("name", "config", "revision", "split", "heldout_split", "heldout_fraction", "image_column", "label_column"),
    *("image_size", "mode", "max_images", "on_corrupt"),
)
_DECIDED = ("name", "num_targets", "num_classes", "in_chans", "image_size")
# Least and greatest value of each number of a recipe.
_USE = {
    "epochs": (0, 10**6),
    "max_steps": (1, 10**8),
    "batch_size": (1, 10**6),
    "learning_rate": (0, 10**4),
    "momentum": (0, 1),
    "weight_decay": (0, 10**4),
}
_WHOLE = ("epochs", "max_steps", "batch_size")
_AUGMENTATION = re.compile(r"[a-z-]{1,40}", re.ASCII)


def stated_student(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the network that a set was distilled with: `name`, an architecture known here, and `model_args`.

    Args:
        provenance: Of the set.

    Returns:
        None where none is stated.

    Raises:
        InputError: What is stated is not on the allow-list.
    """
    stated = section(provenance, "student")
    if not stated.get("name"):
        return None
    _refuse("student", _student_problems(stated), "name it by --students")
    return {"name": stated["name"], "model_args": dict(stated.get("model_args") or {})}


def stated_teacher(teacher: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the settings of a ready-made teacher that timm has by name, or that is on the Hub.

    Args:
        teacher: The recorded settings; without `backbone` where another one is used.

    Returns:
        None for a teacher that cannot be had: a folder or file of the machine where the set was made, or one that was
        trained there.

    Raises:
        InputError: What is stated is not on the allow-list.
    """
    _refuse("teacher", _teacher_problems(teacher), "name it by --teacher.backbone")
    name = str(teacher.get("backbone", ""))
    if teacher.get("pretrained") is not True or teacher.get("checkpoint") or name.startswith("local-dir:"):
        return None
    if name and (not _HUB_MODEL.fullmatch(name) or ".." in name) and not _is_architecture(name):
        raise InputError(
            "the teacher of the record must be an architecture that timm knows here, or on the Hub; got "
            f"{arguments.show(name)}: give --teacher.backbone"
        )
    known = ("backbone", "pretrained", "features", "input_size", "mean", "std", "model_args")
    return {key: teacher[key] for key in known if key in teacher}


def stated_source(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the settings of the source images where these are the embedded digits or on the Hub.

    Args:
        data: The recorded settings; without `name` where other images are used.

    Returns:
        None where they were a folder, or where a folder of that name is here: nothing tells that it holds these
        images, and a record does not choose which folders of this machine are read.

    Raises:
        InputError: What is stated is not on the allow-list.
    """
    _refuse("source", _data_problems(data), "name it by --source.name")
    name = str(data.get("name"))
    is_id = HUB_ID.fullmatch(name) or _TAGGED.fullmatch(name.replace("-", "_"))
    if "name" in data and name != DIGITS and (not is_id or Path(name).exists()):
        return None
    return {key: data[key] for key in _DATA if key in data}


def check_use(stated: Mapping[str, Any]) -> None:
    """Refuses a recipe whose values are no numbers of a recipe.

    Raises:
        InputError: A value is of another type, or out of range.
    """
    _refuse("use", _use_problems(stated), "use the set with settings of your own")


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as they may be recorded: of folders outside of the working folder only the last part is left.

    Args:
        settings: The resolved settings of a run, or those that a record holds.
    """
    cut = dict(settings)
    for part, key in (("data", "name"), ("teacher", "backbone"), ("teacher", "checkpoint")):
        name = section(settings, part).get(key)
        if isinstance(name, str) and list(_text_problems(name, key)):
            place = name.removeprefix("local-dir:")
            cut[part] = {**section(cut, part), key: name.removesuffix(place) + Path(place).name}
    return cut


def find_problems(provenance: Mapping[str, Any]) -> list[str]:
    """Returns everything that a record states and that must not be used, a sentence for each.

    Args:
        provenance: Of a set or of a teacher.
    """
    settings = section(provenance, "settings")
    parts: dict[str, tuple[Any, Callable[[Mapping[str, Any]], Iterator[str]]]] = {
        "student": (provenance.get("student"), _student_problems),
        "teacher": (provenance.get("teacher"), _name_problems),
        "teacher.source": (section(provenance, "teacher").get("source"), _name_problems),
        "teacher.objective": (section(provenance, "teacher").get("objective"), _objective_problems),
        "objective": (provenance.get("objective"), _objective_problems),
        "source": (provenance.get("source"), _name_problems),
        "use": (provenance.get("use"), _use_problems),
        "settings.student": (settings.get("student"), _student_problems),
        "settings.teacher": (settings.get("teacher"), _teacher_problems),
        "settings.data": (settings.get("data"), _data_problems),
        "settings.use": (settings.get("use"), _use_problems),
        "settings.pretrain": (settings.get("pretrain"), _pretrain_problems),
    }
    found = []
    for name, (stated, problems) in parts.items():
        if stated:
            # A bare value counts as the name.
            entries = stated if isinstance(stated, Mapping) else {"name": stated}
            found += [f"{name}: {problem}" for problem in problems(entries)]
    found += [problem for problem in _nested_arguments(provenance, "") if problem not in found]
    space = provenance.get("student_pixel_space")
    if space is not None and not _is_space(space):
        found.append(
            f"student_pixel_space must hold mean and std, numbers of 1 or 3 channels, got {arguments.show(space)}"
        )
    if not isinstance(provenance.get("seed", 0), int):
        found.append(f"seed must be a whole number, got {arguments.show(provenance['seed'])}")
    return found


def _refuse(what: str, problems: Iterator[str], mend: str) -> None:
    found = list(problems)
    if found:
        raise InputError(
            f"the {what} that the record states is not taken: {'; '.join(found)}. A record may not choose "
            f"what is loaded: {mend}, or fetch the set from a source that you trust"
        )


def _student_problems(stated: Mapping[str, Any]) -> Iterator[str]:
    name = stated.get("name")
    if not isinstance(name, str) or not arguments.ARCHITECTURE.fullmatch(name) or not _is_architecture(name):
        yield f"its name must be an architecture that timm knows here, got {arguments.show(name)}"
    args = stated.get("model_args")
    decided = ", ".join(name for name in _DECIDED if isinstance(args, Mapping) and name in args)
    if decided:
        yield f"model_args must leave out {decided}, which the set decides"
    yield from _argument_problems(stated, "model_args")


def _teacher_problems(stated: Mapping[str, Any]) -> Iterator[str]:
    for key in ("backbone", "checkpoint", "features"):
        yield from _text_problems(stated.get(key), key)
    size = stated.get("input_size")
    if size is not None and not (type(size) is int and 0 < size <= LARGEST_SIDE):
        yield f"input_size must be a whole number from 1 to {LARGEST_SIDE}, got {arguments.show(size)}"
    for key in ("mean", "std"):
        yield from _argument_problems({key: {key: stated.get(key)}}, key)
    yield from _argument_problems(stated, "model_args")


def _data_problems(stated: Mapping[str, Any]) -> Iterator[str]:
    for key in ("name", "config", "revision", "split", "heldout_split", "image_column", "label_column", "mode"):
        yield from _text_problems(stated.get(key), key)


def _name_problems(stated: Mapping[str, Any]) -> Iterator[str]:
    for key in ("name", "hub", "config", "revision"):
        yield from _text_problems(stated.get(key), key)


def _objective_problems(stated: Mapping[str, Any]) -> Iterator[str]:
    yield from _text_problems(stated.get("name"), "name")
    settings = {key: value for key, value in stated.items() if key not in ("name", "citation")}
    yield from arguments.find_problems(settings)


def _pretrain_problems(stated: Mapping[str, Any]) -> Iterator[str]:
    yield from _text_problems(stated.get("objective"), "objective")
    for key in ("objective_args", "view_args"):
        yield from _argument_problems(stated, key)


def _use_problems(stated: Mapping[str, Any]) -> Iterator[str]:
    for key, (least, greatest) in _USE.items():
        value = stated.get(key)
        kind = int if key in _WHOLE else int | float
        fine = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= greatest
        if value is not None and not fine:
            number = "a whole number" if key in _WHOLE else "a number"
            yield f"{key} must be {number} from {least} to {greatest}, got {arguments.show(value)}"
    for key in ("augmentation", "augment"):
        value = stated.get(key)
        if value is not None and not (isinstance(value, str) and _AUGMENTATION.fullmatch(value)):
            yield f"{key} must be a word, got {arguments.show(value)}"


def _argument_problems(stated: Mapping[str, Any], key: str) -> Iterator[str]:
    yield from (f"{key}: {problem}" for problem in arguments.find_problems(stated.get(key) or {}))


def _nested_arguments(value: Any, path: str) -> Iterator[str]:
    """Looks at arguments wherever else they stand in a record."""
    if isinstance(value, list):
        for part in value:
            yield from _nested_arguments(part, path)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            inner = f"{path}.{key}" if path else str(key)
            if str(key).endswith("_args") and part:
                named = f"{path}: {key}" if path else str(key)
                yield from (f"{named}: {problem}" for problem in arguments.find_problems(part))
            else:
                yield from _nested_arguments(part, inner)


def _text_problems(value: Any, key: str) -> Iterator[str]:
    """Refuses addresses, absolute folders and ways out of a folder in the place of a name."""
    if value is None:
        return
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or not value.isprintable():
        yield f"{key} must be text of at most {_LONGEST_NAME} letters, got {arguments.show(value)}"
        return
    place = value.removeprefix("local-dir:")
    parts = re.split(r"[/\\]", place)
    if "://" in value or "::" in value or place.startswith(("/", "\\", "~")) or ".." in parts or place[1:3] == ":\\":
        yield f"{key} must be a name, no address and no folder of a machine, got {arguments.show(value)}"


def _is_space(value: Any) -> bool:
    try:
        space = PixelSpace.from_dict(value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False
    return space.channels in (1, 3) and all(isfinite(number) for number in (*space.mean, *space.std))


def _is_architecture(name: str) -> bool:
    # Imported here, since a set is read where timm is not installed; then no name can be used, and none is known.
    try:
        import timm
    except ImportError:
        return False
    return _TAGGED.fullmatch(name) is not None and bool(timm.is_model(name))
