"""The classes of images, read from label columns of several kinds as numbers from 0 on, alike in all splits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssdd_hub.data.columns import find_label_column, no_classes, require_classes
from ssdd_hub.data.literal_folder import literal
from ssdd_hub.errors import InputError


class Labels(NamedTuple):
    """The classes of all rows of a split."""

    numbers: Tensor  # (N,), int64, -1 where unknown
    names: list[str]  # one per class


def read_labels(tables: Mapping[str, Any], wanted: str, declared: bool = True) -> dict[str, Labels | None]:
    """Returns the labels of each split, all with the classes of the first one that has any; None without known ones.

    Args:
        tables: The splits that are used, the one that is trained on first.
        wanted: The setting `label_column`.
        declared: Whether a split has all classes that a class label names, with images or without.

    Raises:
        InputError: There is no such column, it holds no classes, or a later split has a class that the first has not.
    """
    found: dict[str, Labels | None] = {}
    first, known = "", Labels(torch.zeros(0), [])
    for split, column in _find_columns(tables, wanted).items():
        labels = _read(tables[split], column, split) if column else None
        if labels is None or not (labels.numbers >= 0).any():
            found[split] = None
        elif not first:
            first, known = split, labels
            found[split] = labels
        else:
            present = set(known.numbers.tolist())
            numbers = {name: index for index, name in enumerate(known.names) if declared or index in present}
            found[split] = Labels(_match(labels, numbers, split, first), known.names)
    return found


def _find_columns(tables: Mapping[str, Any], wanted: str) -> dict[str, str | None]:
    # A column that is named need not be in each split: images to train on may have no classes.
    named = wanted not in ("auto", "none") and any(wanted in table.features for table in tables.values())
    columns = {split: None if named else find_label_column(table.features, wanted) for split, table in tables.items()}
    column = wanted if named else next(filter(None, columns.values()), None)
    return {split: column if column in table.features else columns[split] for split, table in tables.items()}


def _read(table: Any, column: str, split: str) -> Labels:
    import pyarrow as pa
    from pyarrow import compute as pc

    kind = table.features[column]
    where = f" of the split '{split}'"
    require_classes(column, kind, where)
    values = table.select_columns([column]).with_format("arrow")[:][column]
    if pa.types.is_floating(values.type) or pa.types.is_null(values.type):
        # Tables without an integer for each image often hold fractions, all of them whole, and NaN.
        values = values.cast(pa.float64())
        try:
            values = pc.if_else(pc.is_nan(values), None, values).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise no_classes(column, kind, where) from error
    names = getattr(kind, "names", None)
    if names is None:
        # The values themselves would be taken for sizes: years and ids are integers too.
        classes = sorted(values.unique().drop_null().to_pylist())
        numbers, names = pc.index_in(values, value_set=pa.array(classes, values.type)), map(str, classes)
    else:
        numbers, names = values, map(literal, names)
    labels = Labels(torch.tensor(pc.fill_null(numbers, -1).to_numpy(), dtype=torch.int64), list(names))
    least, greatest = (int(end) for end in labels.numbers.aminmax()) if len(values) else (-1, -1)
    if not -1 <= least <= greatest < len(labels.names):
        count = len(labels.names)
        raise InputError(
            f"the column '{column}' of the split '{split}' must hold numbers from -1 to {count - 1}, as it names "
            f"{count} classes, and they span {least} to {greatest}: correct its values or names"
        )
    return labels


def _match(labels: Labels, numbers: Mapping[str, int], split: str, first: str) -> Tensor:
    present = set(labels.numbers.tolist()) - {-1}
    strange = [labels.names[own] for own in sorted(present)]
    strange = [name for name in strange if name not in numbers]
    if strange:
        raise InputError(
            f"the split '{split}' holds images of classes that '{first}' does not have ({_few(strange)}; it has "
            f"{_few([*numbers])}): give both splits the same names of classes, leave these images out, choose another "
            "--data.heldout-split, or pass --data.label-column none"
        )
    # The last entry is that of -1.
    return torch.tensor([*(numbers.get(name, -1) for name in labels.names), -1])[labels.numbers]


def _few(names: list[str]) -> str:
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name[:80]) for name in names[:5]) + more
