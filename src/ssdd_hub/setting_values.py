"""Values of settings: text of a command line, or what YAML holds, as a value of a setting's type."""

import json
import re
from functools import cache
from inspect import formatannotation
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser

from ssdd_hub.bounds import LARGEST_WHOLE

_LONGEST_LIST = 10_000  # characters of text that is read as YAML again
_AMBIGUOUS = re.compile(r"(?<![\w.+-])[-+]?0\d|\d[:_]\d")  # 010 is 8 to some, and 1:30 is 90


def read_value(value: Any, kind: Any) -> Any:
    """Returns text, or what a YAML file holds, as a value of a setting's type; a `ValueError` says what to write."""
    if kind == dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("write {name: value}")
        return value
    if kind in (str, str | None) and not isinstance(value, kind):
        # A number of YAML is not what was written: 1e3 is 1000.0.
        raise ValueError("put it in quotes")
    text = value if isinstance(value, str) else json.dumps(value)
    if kind not in (str, str | None) and len(text) > _LONGEST_LIST:
        raise ValueError(f"at most {_LONGEST_LIST} characters are taken")
    if "str" not in formatannotation(kind) and _AMBIGUOUS.search(text):
        raise ValueError("write a number without leading zeros, colons and underscores")
    if text != "null" and not text.startswith("[") and list in [get_origin(part) for part in (kind, *get_args(kind))]:
        text = f"[{text}]"
    found = _parser_of(kind).parse_args([f"--value={text}"]).value
    if isinstance(found, int) and abs(found) > LARGEST_WHOLE:
        raise ValueError("write one below 2**63")
    return found


@cache
def _parser_of(kind: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser
