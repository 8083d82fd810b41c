"""What the card of a dataset states, as far as it can be read."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read_card(file: Path) -> dict[str, Any]:
    """Returns the metadata of a `README.md`, or the content of a YAML file beside it; nothing of what is no such file.

    Mistakes in it are left to `datasets`, which names them.
    """
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        if not file.is_file():  # a pipe would be read for ever
            return {}
        content = yaml.safe_load(file.read_text("utf-8")) if file.suffix == ".yaml" else metadata_load(file)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def licence_text(licence: Any) -> str | None:
    """Returns a licence or a list of licences as text, and None for what is neither."""
    names = licence if isinstance(licence, list) else [licence]
    return ", ".join(names) if all(isinstance(name, str) for name in names) else None


def data_patterns(card: Mapping[str, Any]) -> Iterator[str]:
    """Yields the patterns and folders that the configurations of a card name as data."""
    for config in _configs(card):
        yield from _texts(config.get("data_files"))
        yield from _texts(config.get("data_dir"))


def config_names(card: Mapping[str, Any]) -> list[str]:
    """Returns the names of the configurations of a card."""
    return [str(config.get("config_name")) for config in _configs(card)]


def is_address(pattern: str) -> bool:
    """Whether `datasets` takes a pattern for an address of some protocol, such as `https://` or `data:`."""
    return "::" in pattern or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", pattern) is not None


def _configs(card: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    configs = card.get("configs")
    return [config for config in configs if isinstance(config, Mapping)] if isinstance(configs, list) else []


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            # `{split: train, path: data/*}`
            yield from () if key == "split" and "path" in value else _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
