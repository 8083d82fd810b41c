"""The allow-list for arguments of networks, objectives and views: numbers, short words, lists and mappings of them.

Untrusted records, settings and repositories state arguments that are handed to `timm.create_model`, which also takes
addresses to fetch, files to read and folders to write. So all arguments pass here, those of a command line too.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ssdd_hub.errors import Check, InputError
from ssdd_hub.text import show as show

RESERVED = frozenset(
    {
        *("model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        *("scriptable", "exportable", "no_jit", "model_cls", "variant", "model_cfg", "feature_cfg", "features_only"),
        *("pretrained_strict", "pretrained_filter_fn", "pretrained_model_args", "kwargs_filter", "feature_cls"),
        *("device", "dtype"),
    }
)
"""What timm's factory takes beside the arguments of a network: where weights come from, and what it builds around."""
ARCHITECTURE = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)
_LARGEST = 1e12
_LARGEST_WHOLE = 2**20
# Of parts in a row, each of which is built before the size of all is known.
_LAYERS, _MOST_LAYERS = re.compile("(depths?|layers|blocks)$"), 1000
_MOST_LEVELS = 4
_MOST_VALUES = 1000


def check_arguments(what: str, arguments: Any) -> None:
    """Refuses arguments that are not on the allow-list; objects that no file can state, such as classes, are taken.

    Raises:
        InputError: A name is reserved or none, or a value is more than a number, a short word or lists of them.
    """
    problems = find_problems(arguments)
    if problems:
        raise InputError(f"{what} cannot be taken: {'; '.join(problems)}")


def argument_checks(option: str, arguments: Mapping[str, Any], decided: Iterable[str], by: str) -> Iterator[Check]:
    """Yields the checks of a setting that holds arguments, without the names that are decided `by` something else."""
    taken = ", ".join(name for name in decided if name in arguments)
    yield not taken, f"{option} must leave out {taken}, which {by}"
    for problem in find_problems(arguments):
        yield False, f"{option}: {problem}"


def find_problems(arguments: Any) -> list[str]:
    """Returns what is wrong with arguments, a sentence for each; see `check_arguments`."""
    if not isinstance(arguments, Mapping):
        return [f"arguments must be values by name, got {show(arguments)}"]
    if _count(arguments) > _MOST_VALUES:
        return [f"arguments must be at most {_MOST_VALUES} values"]
    return list(_problems(arguments, "", _MOST_LEVELS))


def _problems(value: Any, path: str, levels: int) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and levels == 0:
        yield f"{path} must not be nested more than {_MOST_LEVELS} deep"
    elif isinstance(value, Mapping):
        for name, part in value.items():
            inner = f"{path}.{name}" if path else str(name)
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                yield f"the name of an argument must be a word, got {show(name)}"
            elif name in RESERVED:
                yield f"{inner} is no argument of the network: it decides what is loaded, and from where"
            else:
                yield from _problems(part, inner, levels - 1)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _problems(part, path, levels - 1)
    elif isinstance(value, str):
        if value and not _WORD.fullmatch(value):
            yield f"{path} must be a number or a short word of letters, digits, _ and -, got {show(value)}"
    elif isinstance(value, int | float):
        largest = _MOST_LAYERS if _LAYERS.search(path) else _LARGEST_WHOLE if isinstance(value, int) else _LARGEST
        # NaN compares as false.
        if not abs(value) <= largest:
            yield f"{path} must be a finite number of at most {largest:g}, got {show(value)}"
    elif isinstance(value, bytes | bytearray | os.PathLike):
        yield f"{path} must be a number or a short word, got {show(value)}"


def _count(value: Any) -> int:
    """Returns the number of values inside a value; counting stops when there are too many."""
    total, left = 0, [value]
    while left and total <= _MOST_VALUES:
        part = left.pop()
        parts = part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
        total += len(parts)
        left += list(parts)[:_MOST_VALUES]
    return total
