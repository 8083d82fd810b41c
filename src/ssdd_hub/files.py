"""Files and folders that appear whole or not at all: written beside their place and renamed."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssdd_hub.errors import InputError
from ssdd_hub.record import CARD_FILE, METADATA_FILE, PREVIEW_FILE, TRANSFORM_FILE

_OWN_ENTRIES = {METADATA_FILE, CARD_FILE, PREVIEW_FILE, TRANSFORM_FILE, "data"}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, renamed to `path` when the block ends well and removed otherwise.

    A reader therefore sees the old file or the whole new one, also after a kill or on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place when the block ends well; parents are created.

    A set that was there is renamed aside first, and removed last. A block that fails leaves the old set and nothing
    else. A kill leaves the old set or the new one whole at its place; between the two renames, both whole beside it
    in hidden folders.

    Raises:
        InputError: The place is taken by something other than a distilled set.
    """
    folder = folder.resolve()
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as scratch:
        # One level down, because the temporary folder itself is closed to other users.
        new, old = Path(scratch, "new"), Path(f"{scratch}.old")
        new.mkdir()
        yield new
        _sync(*new.rglob("*"), new)
        try:
            # Again, since the block may have taken long.
            _check_replaceable(folder)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            _put_back(old, folder)
            raise
        _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    try:
        if old.exists() and not folder.exists():
            old.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    # Another process may have taken the place meanwhile; then the old set is of no more use.
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    try:
        entries = _entries(folder)
    except NotADirectoryError as error:
        raise InputError(f"a distilled set is a folder, and {folder} is a file: choose another place") from error
    foreign = sorted(entries - _OWN_ENTRIES) if METADATA_FILE in entries else sorted(entries)
    if foreign:
        raise InputError(
            f"{folder} holds files that are no part of a distilled set ({', '.join(foreign[:3])}), and saving would "
            "remove them: choose another folder or empty this one"
        )


def _entries(folder: Path) -> set[str]:
    """Returns the names in a folder, none where it does not exist, though other processes may be replacing it."""
    try:
        before = folder.stat()
        entries = set(os.listdir(folder))
        after = folder.stat()
    except FileNotFoundError:
        return set()
    # A folder that was put aside meanwhile may have been read while it was removed, in part.
    return entries if os.path.samestat(before, after) else _entries(folder)


def _sync(*paths: Path) -> None:
    """Writes the bytes to the disk before the next rename; Windows cannot open a folder for it."""
    if os.name == "posix":
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
