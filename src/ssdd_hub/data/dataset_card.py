"""Metadata of a dataset's README.md, read as plain YAML within limits."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssdd_hub.errors import InputError
from ssdd_hub.plain_yaml import load_plain_yaml

CARDS = ("README.md", ".huggingface.yaml")
"""The card of a dataset, and the file that adds to it."""

_LARGEST_FILE = 2**24  # bytes; texts of cards may hold pictures
_LONGEST_YAML = 2**22  # characters; the longest cards describe thousands of configurations


def read_card(file: Path, name: str) -> dict[str, Any]:
    """Returns the metadata of a `README.md`, or the content of a YAML file; empty for what is no regular file.

    Refuses what is no plain YAML, which `datasets` must not see: a few lines of aliases stand for gigabytes.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        if not file.is_file():  # reading a pipe would never end
            return {}
        if (size := file.stat().st_size) > _LARGEST_FILE:
            raise InputError(f"it must be of at most {_LARGEST_FILE} bytes, got {size}")
        # Line ends as they are: otherwise the block could end elsewhere than for `datasets`.
        with file.open(encoding="utf-8-sig", newline="") as opened:
            text = opened.read()
        if file.suffix != ".yaml":
            block = REGEX_YAML_BLOCK.search(text)
            text = block[2] if block else ""
        if len(text) > _LONGEST_YAML:
            raise InputError(f"its YAML must be of at most {_LONGEST_YAML} characters, got {len(text)}")
        content = load_plain_yaml(text)
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{file.name}' of the dataset '{name}' must be a text with plain YAML, without aliases, and cannot be "
            f"read ({' '.join(str(error).split())[:200]}): repair it"
        ) from error
    return content if isinstance(content, dict) else {}


def licence_text(licence: Any) -> str | None:
    """Returns a licence or a list of licences as text, and None for anything else."""
    names = licence if isinstance(licence, list) else [licence]
    return ", ".join(names) if all(isinstance(name, str) for name in names) else None


def list_configs(card: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the configurations of a card."""
    configs = card.get("configs")
    return [config for config in configs if isinstance(config, Mapping)] if isinstance(configs, list) else []


def list_patterns(config: Mapping[str, Any]) -> list[str]:
    """Returns the patterns and folders that a configuration names as data."""
    return [*_texts(config.get("data_files")), *_texts(config.get("data_dir"))]


def is_address(pattern: str) -> bool:
    """Whether `datasets` takes a pattern for an address of some protocol, such as `https://` or `data:`."""
    return "::" in pattern or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", pattern) is not None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            # `{split: train, path: data/*}`
            yield from () if key == "split" and "path" in value else _texts(part)
    elif isinstance(value, list | tuple | set):  # YAML has `!!set` too
        for part in value:
            yield from _texts(part)
