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
    import datasets

    # Parquet files that were not written by `datasets` hold images as a plain structure.
    plain = [name for name, kind in features.items() if isinstance(kind, dict) and set(kind) == {"bytes", "path"}]
    candidates = [name for name, kind in features.items() if name in plain or isinstance(kind, datasets.Image)]
    columns = f"its columns are {', '.join(features)}"
    if wanted != "auto":
        _require_column(features, wanted, "image-column")
        if wanted not in candidates:
            raise InputError(f"the column '{wanted}' (--data.image-column) holds no images; {columns}")
        return wanted
    if not candidates:
        raise InputError(f"the dataset has no image column; {columns}")
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
    if wanted not in classes and not str(getattr(features[wanted], "dtype", "")).startswith(("int", "uint")):
        raise InputError(f"the column '{wanted}' (--data.label-column) holds no classes, not even integers")
    return wanted


def _require_column(features: Mapping[str, Any], wanted: str, option: str) -> None:
    if wanted not in features:
        raise InputError(f"there is no column '{wanted}' (--data.{option}); {suggest(wanted, features)}")
