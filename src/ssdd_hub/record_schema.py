"""What the fields of a record must be: one schema, by which every record is checked where it is read or written.

Records may be untrusted. `statements` holds what else a record must not state, where that is used.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from ssdd_hub.errors import InputError, require
from ssdd_hub.text import show

COLUMNS = {
    "images": ("pixels", "float32"),
    "targets": ("target", "float32"),
    "labels": ("label", "int64"),
    "views": ("view", "int64"),
    "view_targets": ("view_target", "float32"),
}
"""The column of each tensor of a set, and the type of its values."""
STORED = {**COLUMNS, "coefficients": ("coefficients", "float32")}
"""The same of each tensor that a set may store; coefficients take the place of images."""
SHARED = ("bases", "target_bases", "shift_hidden", "shift_output")
"""The tensors that all rows of a set may share."""
STORED_TYPES: dict[str, tuple[str, ...]] = {
    **{name: (dtype,) for name, (_, dtype) in STORED.items()},
    **{"images": ("float32", "uint8"), "coefficients": ("float32", "int8")},
    **dict.fromkeys(("targets", "view_targets", "target_bases"), ("float32", "float16", "int8")),
    **{"bases": ("float32", "int8")},
    **dict.fromkeys(("shift_hidden", "shift_output"), ("float32", "float16")),
}
"""The types in which each tensor may be stored."""
PICTURES = "image"
"""The column of pictures: previews, or, of images that are stored as uint8, these images themselves."""
_DIMENSIONS = {"images": 4, "targets": 2, "labels": 1, "views": 3, "view_targets": 3, "coefficients": 2, "bases": 4}
_DIMENSIONS |= dict.fromkeys(("target_bases", "shift_hidden", "shift_output"), 2)
_MOST_SIZES = 5  # of a tensor
_SHA256 = re.compile("[0-9a-f]{64}")
_WORD = re.compile(r"[a-z-]{1,40}", re.ASCII)
_LONGEST_TEXT = 100_000  # characters, which a card takes seconds to escape
_LARGEST = 1e300
_LARGEST_WHOLE = 2**64  # seeds have so many bits; YAML, Markdown and floating point choke on thousands of digits


def column_of(name: str, dtype: str) -> str:
    """Returns the column of a tensor of a set that is stored in a type."""
    return PICTURES if name == "images" and dtype == "uint8" else STORED[name][0]


# The check of a field: yields a sentence for each mistake, given the value and the field's name.
Field = Callable[[Any, str], Iterator[str]]


@dataclass(frozen=True)
class Stated:
    """Shape, sha256 and type of a stored tensor as `ssdd_hub.json` states them."""

    shape: tuple[int, ...]
    sha256: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = self.shape if isinstance(self.shape, list | tuple) else ()
        fits = 0 < len(sizes) <= _MOST_SIZES and all(type(size) is int and size > 0 for size in sizes)
        is_digest = isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256) is not None
        require(
            (fits, f"a shape must be 1 to {_MOST_SIZES} whole numbers above 0; got {show(self.shape)}"),
            (is_digest, f"a sha256 must be 64 hexadecimal digits; got {show(self.sha256)}"),
        )
        object.__setattr__(self, "shape", tuple(sizes))

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "dict[str, Stated]":
        """Returns the stated tensors: `images`, `targets` and, when the set has them, labels and views.

        Raises an `InputError` for others, for a missing one, and for a shape or sha256 that cannot be one.
        """
        entries = metadata.get("tensors")
        if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
            raise InputError(f"tensors must be stated by name, with shape and sha256; got {show(entries)}")
        first, other = ("coefficients", "images") if "coefficients" in entries else ("images", "coefficients")
        missing = sorted({first, "targets"} - entries.keys())
        unknown = sorted(entries.keys() - (STORED.keys() - {other}))
        require(
            (not missing, f"tensors: images and targets must be stated; there are no {' and '.join(missing)}"),
            (not unknown, f"tensors: only {', '.join(STORED)} can be stated; got {', '.join(unknown)[:80]}"),
        )
        return {name: cls._of("tensors", name, entries[name]) for name in STORED if name in entries}

    @classmethod
    def of_shared(cls, metadata: Mapping[str, Any]) -> "dict[str, Stated]":
        """Returns the same of the tensors that all rows share; most sets have none."""
        storage = metadata.get("storage")
        entries = (storage.get("shared") if isinstance(storage, Mapping) else None) or {}
        fits = isinstance(entries, Mapping) and all(isinstance(entry, Mapping) for entry in entries.values())
        unknown = sorted(map(str, entries.keys() - set(SHARED))) if fits else []
        require(
            (fits, f"storage.shared must be stated by name, with shape and sha256; got {show(entries)}"),
            (not unknown, f"storage.shared: only {', '.join(SHARED)} can be stated; got {', '.join(unknown)[:80]}"),
        )
        return {name: cls._of("storage.shared", name, entry) for name, entry in entries.items()}

    @classmethod
    def _of(cls, place: str, name: str, entry: Mapping[str, Any]) -> "Stated":
        try:
            dtype = STORED_TYPES[name][0] if entry.get("dtype") is None else entry["dtype"]
            return cls(entry.get("shape", ()), entry.get("sha256", ""), dtype)
        except InputError as error:
            raise InputError(f"{place}.{name}: {_one_line(error)}") from error


def find_misfits(record: Mapping[str, Any], of_model: bool = False) -> list[str]:
    """Returns a sentence, which names the field, for each value of another type or range than the schema has.

    The record is that of a set, or that of a model, such as a teacher.
    """
    return list(_find_unwritable(record, "")) or list((_MODEL if of_model else _set)(record, ""))


def find_provenance_misfits(provenance: Any, channels: int) -> list[str]:
    """Returns the same for the provenance alone of a set whose images have so many channels."""
    return [*_PROVENANCE(provenance, "provenance"), *_misfit_of_space(provenance, channels)]


def number(
    value: Any, name: str, *, least: float = -_LARGEST, greatest: float = _LARGEST, whole: bool = False
) -> Iterator[str]:
    """Checks for a number; true and false are none, as are NaN and infinity."""
    kind = int if whole else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= greatest:
        text = "a whole number" if whole else "a number"
        text += (
            f" from {least} to {greatest}" if greatest < _LARGEST else f" of at least {least:g}" if least == 0 else ""
        )
        yield f"{name} must be {text}, got {show(value)}"


def word(value: Any, name: str) -> Iterator[str]:
    """Checks for a short word of small letters."""
    if not (isinstance(value, str) and _WORD.fullmatch(value)):
        yield f"{name} must be a word, got {show(value)}"


def _one(value: Any, name: str, *, of: tuple[str, ...]) -> Iterator[str]:
    if value not in of:
        yield f"{name} must be one of {', '.join(of)}, got {show(value)}"


def _text(value: Any, name: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{name} must be text, got {show(value)}"


def _sha256(value: Any, name: str) -> Iterator[str]:
    if not (isinstance(value, str) and _SHA256.fullmatch(value)):
        yield f"{name} must be 64 hexadecimal digits, got {show(value)}"


def _space(value: Any, name: str) -> Iterator[str]:
    # It needs torch, for which files and locks, which know a record by its names, need not wait.
    from ssdd_hub.pixel_space import PixelSpace

    try:
        PixelSpace.from_dict(value)
    except InputError as error:
        yield f"{name}: {_one_line(error)}"


def _list(value: Any, name: str, *, each: Field, length: int | None = None, most: float = inf) -> Iterator[str]:
    if not isinstance(value, list) or length not in (None, len(value)):
        yield f"{name} must be a list{f' of {length}' if length else ''}, got {show(value)}"
        return
    if len(value) > most:
        yield f"{name} must be a list of at most {most}, got {len(value)}"
        return
    for index, part in enumerate(value):
        yield from each(part, f"{name}[{index}]")


def _score_value(value: Any, name: str) -> Iterator[str]:
    # A measurement may have failed.
    if value is not None:
        yield from number(value, name)


def _fields(checks: Mapping[str, Field], required: tuple[str, ...] = ()) -> Field:
    """Returns the check of an object; what is not required may be missing or null, and others may be there."""

    def check(value: Any, name: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{name} must be an object, got {show(value)}"
            return
        for key, part in checks.items():
            place = f"{name}.{key}".lstrip(".")
            if value.get(key) is not None:
                yield from part(value[key], place)
            elif key in required:
                yield f"{place} is missing"

    return check


def _set(record: Mapping[str, Any], name: str) -> Iterator[str]:
    try:
        stated, shared = Stated.of(record), Stated.of_shared(record)
    except InputError as error:
        yield _one_line(error)
    else:
        for place, group in (("tensors", stated), ("storage.shared", shared)):
            for tensor, entry in group.items():
                wanted = _DIMENSIONS[tensor]
                if len(entry.shape) != wanted:
                    yield f"{place}.{tensor}.shape must be {wanted} sizes, got {show(entry.shape)}"
                if entry.dtype not in STORED_TYPES[tensor]:
                    types = " or ".join(STORED_TYPES[tensor])
                    yield f"{place}.{tensor}.dtype must be {types}, got {show(entry.dtype)}"
        images = stated["images"].shape if "images" in stated else ()
        channels = images[1] if len(images) == _DIMENSIONS["images"] else 0
        yield from _misfit_of_space(record, channels, "pixel_space", "")
        yield from _misfit_of_space(record.get("provenance"), channels)
    yield from _SET(record, name)


def _misfit_of_space(
    holder: Any, channels: int, name: str = "student_pixel_space", place: str = "provenance."
) -> Iterator[str]:
    """Checks a pixel space that is one for its number of channels; 0 where that is unknown."""
    space = holder.get(name) if isinstance(holder, Mapping) else None
    if channels and space is not None and not list(_space(space, name)) and len(space["mean"]) != channels:
        yield f"{place}{name} must have the images' {channels} channel(s); got {len(space['mean'])}"


def _find_unwritable(value: Any, name: str) -> Iterator[str]:
    """Finds what JSON and UTF-8 cannot hold, though Python reads it, and numbers of any number of digits."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _find_unwritable(key, f"a name in {name or 'the record'}")
            yield from _find_unwritable(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _find_unwritable(part, f"{name}[{index}]")
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            yield f"{_safe(name)} must be text that UTF-8 can hold, got {show(value)}"
        if len(value) > _LONGEST_TEXT:
            yield f"{_safe(name)} must be of at most {_LONGEST_TEXT} characters, got {len(value)}"
    elif isinstance(value, int | float) and not abs(value) < (_LARGEST_WHOLE if isinstance(value, int) else _LARGEST):
        yield f"{_safe(name)} must be a finite number of usual size, got {show(value)}"


def _safe(name: str) -> str:
    return name[:80].encode(errors="replace").decode()


def _one_line(error: InputError) -> str:
    return "; ".join(str(error).splitlines())


_COUNT = partial(number, whole=True, least=0)
_WHOLE = partial(number, whole=True)
_OBJECT = _fields({})
USE: dict[str, Field] = {
    "epochs": partial(number, whole=True, least=0, greatest=10**6),
    **dict.fromkeys(("max_steps", "steps"), partial(number, whole=True, least=1, greatest=10**8)),
    "batch_size": partial(number, whole=True, least=1, greatest=10**6),
    "learning_rate": partial(number, least=0, greatest=10**4),
    **dict.fromkeys(("momentum", "mixup", "average"), partial(number, least=0, greatest=1)),
    "weight_decay": partial(number, least=0, greatest=10**4),
    **dict.fromkeys(("augmentation", "augment", "schedule"), word),
    "precision": partial(_one, of=("float32", "bf16")),
}
"""The recipe for students."""
_SOURCE = _fields(
    {
        **dict.fromkeys(("name", "config", "revision", "split", "license", "fingerprint", "labels", "mode"), _text),
        **dict.fromkeys(("num_images", "num_skipped", "image_size"), _COUNT),
    }
)
_OBJECTIVE = _fields(dict.fromkeys(("name", "citation"), _text))
_TEACHER: dict[str, Field] = {
    **dict.fromkeys(("name", "hub", "license", "features", "interpolation"), _text),
    **dict.fromkeys(("weights_sha256", "structure_sha256"), _sha256),
    **dict.fromkeys(("feature_dim", "input_size"), _COUNT),
    "pixel_space": _space,
    "objective": _OBJECTIVE,
    "source": _SOURCE,
    "seed": _WHOLE,
}
_STUDENT = _fields(
    {
        **dict.fromkeys(("name", "features", "weights", "license"), _text),
        **{"model_args": _OBJECT, "weights_sha256": _sha256},
    }
)
_SCORE = _fields(
    {
        **dict.fromkeys(("mean", "std"), number),
        **dict.fromkeys(("n", "images", "bytes", "budget"), _COUNT),
        "training": _text,
        "values": partial(_list, each=_score_value),
    }
)
_PROVENANCE = _fields(
    {
        **dict.fromkeys(("method", "targets", "license", "license_reason", "command"), _text),
        **dict.fromkeys(("versions", "hardware", "selection", "target_transform", "views", "import"), _OBJECT),
        "seed": _WHOLE,
        "seconds": partial(number, least=0),
        "source": _SOURCE,
        "heldout": _SOURCE,
        "teacher": _fields(_TEACHER),
        "objective": _OBJECTIVE,
        "student": _STUDENT,
        "student_pixel_space": _space,
        "use": _fields(USE),
        "learned": _fields({"learning_rate": number, "label_scale": number}),
        "scores": partial(_list, each=_SCORE, most=10_000),
        "sets": partial(_list, each=_text),
        "settings": _fields(
            {
                **dict.fromkeys(("data", "teacher", "pretrain", "targets"), _OBJECT),
                "student": _STUDENT,
                "use": _fields(USE),
            }
        ),
    }
)
_LEVELS = _fields(
    {
        "scale": partial(_list, each=partial(number, least=1e-12, greatest=1e12)),
        "offset": partial(_list, each=partial(number, least=-1e12, greatest=1e12)),
    },
    required=("scale", "offset"),
)
_STORAGE = _fields(
    {
        "parameterisation": _fields({"name": _text, "args": _OBJECT}, required=("name",)),
        **dict.fromkeys(("images", "coefficients", "targets", "view_targets", *SHARED), _LEVELS),
    }
)
_SET = _fields(
    {
        "pixel_space": _space,
        "storage": _STORAGE,
        "num_bytes": _fields(dict.fromkeys(("images", "targets", "decoder", "file"), _COUNT)),
        "pixel_range": partial(_list, each=number, length=2),
        "clip_fraction": number,
        "label_names": partial(_list, each=_text),
        "target_transform": _fields({"sha256": _sha256}, required=("sha256",)),
        "provenance": _PROVENANCE,
    },
    required=("pixel_space", "pixel_range", "clip_fraction", "provenance"),
)
_MODEL = _fields(
    {"architecture": _text, "teacher": _fields(_TEACHER, required=("name",)), "provenance": _PROVENANCE},
    required=("teacher", "provenance"),
)
