"""The splits of a dataset, its image column and its label column, found by name."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from ssdd_hub.errors import InputError

LABEL_COLUMNS = ("label", "labels", "fine_label")
"""Label columns when none is named; the first that exists is taken."""


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
    if not dtype.startswith(("int", "uint", "bool", "string", "large_string")):
        raise InputError(
            f"the column '{column}' (--data.label-column){where} holds no classes but {_type_of(kind)}; classes are "
            f"class labels, integers, texts or booleans: dataset.cast_column('{column}', datasets.Value('int64')), "
            "another column, or none"
        )


def _image_kind(kind: Any) -> int:
    """Returns 2 for a column of images, 1 for one of bytes, which may be images, and 0 for others."""
    import datasets

    # Parquet files that were not written by `datasets` hold images as a plain structure.
    if isinstance(kind, datasets.Image) or isinstance(kind, dict) and set(kind) == {"bytes", "path"}:
        return 2
    return int(isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary"))


def _type_of(kind: Any) -> str:
    text = repr(kind)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _columns(features: Mapping[str, Any]) -> str:
    return f"its columns are {', '.join(f'{name} ({_type_of(kind)})' for name, kind in features.items())}"


def _cast(column: str) -> str:
    return (
        "images are a column of datasets.Image(), or of the bytes of image files; paths and arrays of uint8 become "
        f"images by dataset.cast_column('{column}', datasets.Image())"
    )


def _require_column(features: Mapping[str, Any], wanted: str, option: str) -> None:
    if wanted not in features:
        raise InputError(f"there is no column '{wanted}' (--data.{option}); {suggest(wanted, features)}")
