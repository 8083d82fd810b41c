"""Files of settings: YAML, found by path or by name, and read within limits."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ssdd_hub.errors import InputError, nearest
from ssdd_hub.plain_yaml import LARGEST_SETTINGS, MISTAKES, SettingsLoader
from ssdd_hub.text import show


def find_file(name: str, folder: Path | None) -> Path:
    """Returns this file of settings, or the one of that name in the folder: `photos` or `photos.yaml`."""
    path = Path(name)
    # A name that the system does not take, such as a very long one, is no file; nor are the photographs in `photos`.
    if not folder or path.name != name or os.path.exists(path) and not os.path.isdir(path):
        return path
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    # Commands in records have file names without their folders.
    if path.suffix == ".yaml" and path.stem in known:
        return folder / name
    if path.suffix:
        return path
    if name not in known:
        named = f"or of one of {', '.join(known)}, got {show(name)}{nearest(name, known)}"
        raise InputError(f"--config must be the path of a YAML file, {named}")
    return folder / f"{name}.yaml"


def read_file(path: Path) -> Mapping[Any, Any]:
    """Returns what a file of settings holds; raises an `InputError` where it is none, or too large."""
    try:
        # The shell's own pipes, `<(...)`, have a writer; another one may be waited for without end.
        if path.is_fifo() and not path.is_relative_to("/dev"):
            raise ValueError("it is a FIFO")
        # Not by the size, which a pipe does not have.
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST_SETTINGS + 1)
        if len(text) > LARGEST_SETTINGS:
            raise ValueError(f"it has more than {LARGEST_SETTINGS} characters")
        content = yaml.load(text, SettingsLoader)
    except (OSError, *MISTAKES) as error:
        raise InputError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, (dict, type(None))):
        raise InputError(f"--config {path} must map names to settings, got a {type(content).__name__}")
    return content or {}
