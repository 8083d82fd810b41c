"""The splits of a dataset, its image column and its label column, found by name."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from ssdd_hub.errors import InputError

LABEL_COLUMNS = ("label", "labels", "fine_label")
"""Label columns when none is named; the first that exists is taken."""

_SHOWN_COLUMNS = 10  # in a message


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown word: the known ones, and the nearest."""
    known = list(known)
    near = get_close_matches(word, known, n=1)
    return f"available: {', '.join(known) or 'none'}" + (f"; did you mean '{near[0]}'?" if near else "")


def require_split(dataset: str, splits: Iterable[str], name: str, option: str) -> None:
    """Refuses the split `name`, which the setting `option` names, if the dataset does not have it."""
    if name not in splits:
        raise InputError(f"the dataset '{dataset}' has no split '{name}' (--data.{option}); {suggest(name, splits)}")


def find_image_column(features: Mapping[str, Any], wanted: str) -> str:
    """Returns the column of the images: the `wanted` one of a dataset's features, or for `auto` the only one."""
    kinds = {name: _image_kind(kind) for name, kind in features.items()}
    if wanted != "auto":
        _require_column(features, wanted, "image-column")
        if not kinds[wanted]:
            raise InputError(
                f"the column '{wanted}' (--data.image-column) holds no images but {_type_of(features[wanted])}; "
                f"{_columns(features)}; {_cast(wanted)}"
            )
        return wanted
    # Bytes are those of images only where nothing else is.
    candidates = next((found for sure in (2, 1) if (found := [name for name in kinds if kinds[name] == sure])), [])
    if not candidates:
        likely = next(iter([*(name for name in features if "im" in name), *features]), "image")
        raise InputError(f"the dataset has no image column; {_columns(features)}; {_cast(likely)}")
    if len(candidates) > 1:
        several = ", ".join(candidates)
        raise InputError(f"the dataset has several image columns ({several}); choose one with --data.image-column")
    return candidates[0]


def find_label_column(features: Mapping[str, Any], wanted: str) -> str | None:
    """Returns the column of the classes: the `wanted` one, for `auto` the class-label column, None for `none`."""
    import datasets

    if wanted == "none":
        return None
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if wanted == "auto":
        preferred = [name for name in LABEL_COLUMNS if name in classes] or classes
        if len(preferred) > 1 and preferred[0] not in LABEL_COLUMNS:
            raise InputError(
                f"the dataset has several label columns ({', '.join(classes)}); "
                "choose one with --data.label-column, or pass none"
            )
        return preferred[0] if preferred else None
    _require_column(features, wanted, "label-column")
    require_classes(wanted, features[wanted])
    return wanted


def require_classes(column: str, kind: Any, where: str = "") -> None:
    """Refuses a label column of a kind that does not tell classes; `where` follows its name in the message."""
    import datasets

    dtype = kind.dtype if isinstance(kind, datasets.Value | datasets.ClassLabel) else ""
    if not dtype.startswith(("int", "uint", "bool", "string", "large_string", "float", "null")):
        raise no_classes(column, kind, where)


def no_classes(column: str, kind: Any, where: str) -> InputError:
    """Returns the error for a label column that does not tell classes."""
    import datasets

    cast = ""
    if isinstance(kind, datasets.Value):
        dtype = "int64" if kind.dtype.startswith("float") else "string"
        cast = f"dataset.cast_column('{column}', datasets.Value('{dtype}')), "
    return InputError(
        f"the column '{column}' (--data.label-column){where} holds no classes but {_type_of(kind)}; classes are one "
        f"class label, integer, text or boolean for each image: {cast}another column, or --data.label-column none"
    )


def _image_kind(kind: Any) -> int:
    """Returns 2 for a column of images, 1 for one of bytes, which may be images, and 0 for others."""
    import datasets

    # Parquet files that were not written by `datasets` hold images as a plain structure.
    if isinstance(kind, datasets.Image) or isinstance(kind, dict) and _is_binary(kind.get("bytes")):
        return 2
    return int(_is_binary(kind))


def _is_binary(kind: Any) -> bool:
    import datasets

    return isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")


def _type_of(kind: Any) -> str:
    text = repr(kind)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _columns(features: Mapping[str, Any]) -> str:
    shown = [f"{name} ({_type_of(kind)})" for name, kind in list(features.items())[:_SHOWN_COLUMNS]]
    more = f", and {len(features) - _SHOWN_COLUMNS} more" if len(features) > _SHOWN_COLUMNS else ""
    return f"its columns are {', '.join(shown)}{more}"


def _cast(column: str) -> str:
    return (
        "images are a column of datasets.Image(), or of the bytes of image files; paths and arrays of uint8, (H, W) "
        f"or (H, W, 3), become images by dataset.cast_column('{column}', datasets.Image()), parts of a structure "
        "columns by dataset.flatten(), and lists of images rows by dataset.map"
    )


def _require_column(features: Mapping[str, Any], wanted: str, option: str) -> None:
    if wanted not in features:
        raise InputError(f"there is no column '{wanted}' (--data.{option}); {suggest(wanted, features)}")
