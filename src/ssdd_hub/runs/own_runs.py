"""The run folders that this user started: only their settings may name folders of this machine.

A run folder can be copied from elsewhere, and its `config.yaml` names source images and teacher by path. Those that
are begun here are remembered by the hash of that file, one empty file for each in the user's cache. Settings that are
remembered name nothing that the user has not named; all others are read as a stranger's.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

LARGEST_CONFIG = 2**20
"""Bytes of a `config.yaml` at most."""


def remember_run(config: Path) -> None:
    """Remembers a run by its `config.yaml`; where the cache cannot be written, it counts as a stranger's.

    Args:
        config: The file, which may hold the same as that of another run.
    """
    with suppress(OSError):
        entry = _entry(config)
        if entry is None:
            return
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.touch()


def is_own_run(config: Path) -> bool:
    """Whether the user of this process began a run with these very settings; what is no file of settings is not."""
    entry = _entry(config)
    return entry is not None and entry.is_file()


def _entry(config: Path) -> Path | None:
    # The file may be a stranger's: a FIFO would block, and a sparse one of any size fill the memory.
    if not config.is_file():
        return None
    with config.open("rb") as file:
        content = file.read(LARGEST_CONFIG + 1)
    if len(content) > LARGEST_CONFIG:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ssdd_hub" / "runs" / hashlib.sha256(content).hexdigest()
