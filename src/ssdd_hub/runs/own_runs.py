"""The run folders that this user started: only their settings may name folders of this machine.

A run folder can be copied from elsewhere, and its `config.yaml` names source images and teacher by path. So the runs
that are begun here are remembered, each by the hash of that file, as an empty file in the user's cache.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from ssdd_hub.files import user_cache

LARGEST_CONFIG = 2**20
"""Bytes of a `config.yaml` at most."""


def remember_run(config: Path) -> None:
    """Remembers a run by its `config.yaml`; where the cache cannot be written, the run counts as untrusted."""
    with suppress(OSError):
        entry = _entry(config)
        if entry is not None:
            entry.parent.mkdir(parents=True, exist_ok=True)
            entry.touch()


def is_own_run(config: Path) -> bool:
    """Whether the user of this process began a run with exactly these settings."""
    entry = _entry(config)
    return entry is not None and entry.is_file()


def _entry(config: Path) -> Path | None:
    # An untrusted file may be a FIFO, which would block, or a sparse file, which would fill the memory.
    if not config.is_file():
        return None
    with config.open("rb") as file:
        content = file.read(LARGEST_CONFIG + 1)
    if len(content) > LARGEST_CONFIG:
        return None
    place = user_cache()
    return place / "runs" / hashlib.sha256(content).hexdigest() if place else None
