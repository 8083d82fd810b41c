"""Files and folders that appear whole or not at all: written beside their place and renamed."""

import itertools
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssdd_hub.errors import InputError
from ssdd_hub.record import CARD_FILE, METADATA_FILE, PREVIEW_FILE, SHARED_FILE, TRANSFORM_FILE

_OWN_ENTRIES = {METADATA_FILE, CARD_FILE, PREVIEW_FILE, TRANSFORM_FILE, SHARED_FILE, "data"}
_SHARD = re.compile(r"train-\d{5}-of-\d{5}\.parquet", re.ASCII)

# What is being written says whose it is: `.NAME.PROCESS-NUMBER@HOST.tmp`, and a set that is being replaced
# `.NAME.PROCESS-NUMBER@HOST.old.tmp`. safetensors writes a file of its own first, which says nothing.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)(-\d+)?(@(?P<host>[\w-]*))?(?P<old>\.old)?\.tmp|\.tmp\w{6}")
_STALE = 86400  # seconds after which no process still writes a temporary file
_NUMBERS = itertools.count()


def user_cache() -> Path | None:
    """Returns the folder in this user's cache for what this package keeps there; None where there is no home."""
    # As in a container whose user has no name.
    home = os.path.expanduser("~")
    place = os.environ.get("XDG_CACHE_HOME") or (os.path.join(home, ".cache") if os.path.isabs(home) else None)
    return Path(place, "ssdd_hub") if place else None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, renamed to `path` when the block ends well and removed otherwise.

    A reader therefore sees the old file or the whole new one, also after a kill or on a full disk. Who may read it is
    decided by the umask alone, whatever the writer does.

    Raises:
        InputError: The place is that of a device or a pipe.
        IsADirectoryError: It is that of a folder.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is no file that could be replaced: choose another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        _finish(mode, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place when the block ends well; parents are created.

    A set that was there is renamed aside first, and removed last. A block that fails leaves the old set and nothing
    else. A kill leaves the old set or the new one whole at its place; between the two renames, both whole beside it
    in hidden folders, and the next call puts the old one back.

    Raises:
        InputError: The place is taken by something other than a distilled set.
    """
    folder = folder.resolve()
    remove_abandoned(folder.parent, folder.name)
    _check_replaceable(folder)
    with hidden_folder(folder) as new:
        yield new
        _finish_tree(new)
        old = new.parent.with_name(new.parent.name.removesuffix(".tmp") + ".old.tmp")
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


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `folder`, where nothing may be yet, when the block ends well."""
    remove_abandoned(folder.parent, folder.name)
    with hidden_folder(folder) as new:
        yield new
        _finish_tree(new)
        new.rename(folder)
        _sync(folder.parent)


@contextmanager
def hidden_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder named `new` inside a hidden one beside `folder`, which is removed in any case."""
    scratch = _beside(folder)
    if scratch.exists():  # of a process that was killed and had the same number
        shutil.rmtree(scratch, ignore_errors=True)
    new = scratch / "new"
    new.mkdir(parents=True)
    try:
        yield new
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_temporary(name: str) -> bool:
    """Whether a name in a folder is one of this module's for what is being written."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_abandoned(folder: Path, name: str | None = None, *, owned: bool = False) -> None:
    """Removes what processes that are gone were writing in a folder; a set that one had put aside is put back.

    Args:
        folder: The folder; what is inside its folders stays.
        name: Only what was to have this name.
        owned: Whether no other process writes here, so that everything temporary is abandoned.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            if not found or name not in (None, found["name"]) or not (owned or _is_abandoned(path, found)):
                continue
            if found["old"]:
                _put_back(path, folder / found["name"])
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def _is_abandoned(path: Path, found: re.Match[str]) -> bool:
    import psutil  # here, because it is not needed to load a set

    try:
        modified = path.lstat().st_mtime
        if time.time() - modified > _STALE:
            return True
        if found["pid"] is None or found["host"] not in (None, _host()):
            return False
        # The number may since have been given to another process, which is younger than the file.
        return bool(psutil.Process(int(found["pid"])).create_time() > modified + 60)
    except psutil.NoSuchProcess:
        return True
    except (OSError, OverflowError, ValueError, psutil.Error):
        return False


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname(), flags=re.ASCII)[:40]


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_NUMBERS)}@{_host()}.tmp")


def _finish(mode: int, *paths: Path) -> None:
    """Gives files the permissions that the umask leaves, which safetensors denies to others, and writes the bytes."""
    for path in paths:
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
    _sync(*paths)


def _finish_tree(folder: Path) -> None:
    entries = sorted(folder.rglob("*"))
    # What the umask leaves of a folder it leaves of a file too, but for searching.
    _finish(stat.S_IMODE(folder.stat().st_mode) & 0o666, *(path for path in entries if path.is_file()))
    _sync(*(path for path in entries if path.is_dir()), folder)


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
        inside = _entries(folder / "data") if "data" in entries else set()
    except NotADirectoryError as error:
        raise InputError(
            f"a distilled set is a folder, and {error.filename} is a file: choose another place"
        ) from error
    foreign = sorted(entries - _OWN_ENTRIES) if METADATA_FILE in entries else sorted(entries)
    foreign += sorted(f"data/{name}" for name in inside if not _SHARD.fullmatch(name))
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
