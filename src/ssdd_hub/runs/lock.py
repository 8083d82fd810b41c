"""The lock of an output folder: one process at a time works in it, and the next one reads who it is."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path
from ssdd_hub.text import printable

LOCK_FILE, OWNER_FILE = ".lock", ".owner.json"
LOCK_FILES = frozenset({LOCK_FILE, OWNER_FILE})
_LARGEST_OWNER = 4096
_PATIENCE = 10  # seconds that the workers of a killed process, which inherit its lock, take to notice
_HELD: list["FolderLock"] = []


class FolderLock:
    """Exclusive use of an output folder, from `acquire` to `release` or to the end of the process.

    The system itself holds the lock (`flock`, through filelock) and frees it when the process ends in any way, so a
    lock is never stale. The owner's process, host and start are written beside it for the message only. Locks of one
    folder in one thread are one: a notebook may begin a run again before the first is collected.

    Args:
        folder: The folder; `acquire` creates it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK_FILE, thread_local=False)
        self._missing: list[Path] = []
        self._process, self._place = 0, ""
        self._file: os.stat_result | None = None
        self._thread = threading.current_thread()

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            InputError: Another process holds it, which is named; or the folder cannot be written.
        """
        self._process, self._place = os.getpid(), os.path.realpath(self.folder)
        self._thread = threading.current_thread()
        shared = next((lock for lock in _HELD if self._is_same(lock)), None)
        if shared:
            if shared._thread.is_alive() and shared._thread is not self._thread:
                raise InputError(
                    f"--output {self.folder} is in use by another thread of this process, {shared._thread.name}: wait "
                    "until it ends, or choose another --output"
                )
            self._lock, self._missing, self._file = shared._lock, shared._missing, shared._file
        else:
            self._missing = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._take()
                self._file = os.stat(self.folder / LOCK_FILE)
                self._write_owner()
            except (OSError, NotImplementedError) as error:
                self._leave()
                raise InputError(
                    f"--output {self.folder} cannot be written or locked ({error}): choose another one, on a disk "
                    "that has file locks and that you may write to"
                ) from error
        _HELD.append(self)

    def release(self) -> None:
        """Frees the folder, and removes it where nothing came into it; again, or in a fork, it does nothing."""
        if self not in _HELD or self._process != os.getpid():
            return
        _HELD.remove(self)
        if not any(self._is_same(lock) for lock in _HELD):
            self._leave()

    def check(self) -> None:
        """Raises an `InputError` where the folder was removed, or made anew, since this process took the lock."""
        if self not in _HELD or self._file is None:
            return
        with suppress(FileNotFoundError):
            if os.path.samestat(self._file, os.stat(os.path.join(self._place, LOCK_FILE))):
                return
        raise InputError(
            f"--output {self.folder} was removed or replaced while this process worked in it: put it back and give "
            "the same command again, or start afresh in another --output"
        )

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _is_same(self, other: "FolderLock") -> bool:
        return (self._process, self._place) == (other._process, other._place)

    def _take(self) -> None:
        for timeout in (0, _PATIENCE):
            try:
                self._lock.acquire(timeout=timeout)
                return
            except Timeout:
                owner = self._owner()
                if timeout or not self._is_dead(owner):
                    break
        name = "process {pid} on {host} ({program}, since {since})".format(**owner) if owner else "another process"
        raise InputError(
            f"--output {self.folder} is in use by {printable(name)}: wait until it ends, stop it, or choose another "
            "--output"
        )

    def _leave(self) -> None:
        if self._lock.is_locked:
            with suppress(OSError):
                (self.folder / OWNER_FILE).unlink(missing_ok=True)
                if self._missing and os.listdir(self.folder) == [LOCK_FILE]:
                    (self.folder / LOCK_FILE).unlink()
        # Only what is empty.
        with suppress(OSError):
            for place in self._missing:
                place.rmdir()
        self._lock.release()

    def _write_owner(self) -> None:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with atomic_path(self.folder / OWNER_FILE) as temporary:
            temporary.write_text(json.dumps({**owner, "program": Path(sys.argv[0]).name}), encoding="utf-8")

    def _owner(self) -> dict[str, Any]:
        """Returns what is written of the owner; nothing where that is damaged."""
        try:
            # The folder may be a stranger's: the text is bounded, and no FIFO.
            if not (self.folder / OWNER_FILE).is_file():
                return {}
            with (self.folder / OWNER_FILE).open(encoding="utf-8") as file:
                owner = json.loads(file.read(_LARGEST_OWNER))
            return {name: owner[name] for name in ("pid", "host", "program", "since")}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    @staticmethod
    def _is_dead(owner: dict[str, Any]) -> bool:
        pid, is_here = owner.get("pid"), owner.get("host") == socket.gethostname()
        return is_here and isinstance(pid, int) and 0 < pid < 2**31 and not psutil.pid_exists(pid)


@contextmanager
def locks_released() -> Iterator[None]:
    """Releases at its end the locks that were acquired within and are still held."""
    before = list(_HELD)
    try:
        yield
    finally:
        for lock in [lock for lock in _HELD if lock not in before]:
            lock.release()
