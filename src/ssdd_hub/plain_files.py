"""Files of a folder that somebody else may have made: plain files are read, links, FIFOs and devices are refused.

A link may lead to a private file, which would end up in a report or a repository; a FIFO or a device may give bytes
without end, or none for ever.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ssdd_hub.errors import InputError


def find_irregular(folder: Path, name: str) -> str | None:
    """Returns what is wrong with an entry of a folder, None for a plain file, a folder and what is not there.

    The links of the Hub client's cache are taken: they lead from a snapshot to the file beside it that has its bytes.

    Args:
        folder: The folder, which may itself be reached by a link.
        name: Relative path of the entry, with `/`; every part of it is looked at.
    """
    root = folder.resolve()
    path = root
    for part in name.split("/"):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode) and not _is_cached(root, path):
            return f"is a link to {os.path.realpath(path)}: put the file itself there"
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            return "is neither a file nor a folder (a FIFO, socket or device): remove it, or fetch the folder again"
    return None


def _is_cached(root: Path, path: Path) -> bool:
    # The client's cache keeps the contents of all revisions in `blobs`, and nothing else there.
    target = Path(os.path.realpath(path))
    return root.parent.name == "snapshots" and target.parent == root.parents[1] / "blobs" and target.is_file()


def require_plain(folder: Path, names: Iterable[str]) -> None:
    """Refuses a folder in which some entries are links, FIFOs or devices.

    Args:
        folder: The folder.
        names: Relative paths of the entries that will be read; what is not there is none of this function's business.

    Raises:
        InputError: One of them is not a plain file or folder.
    """
    for name in names:
        problem = find_irregular(folder, name)
        if problem:
            raise InputError(f"{folder / name} {problem}")


def require_plain_entries(folder: Path) -> None:
    """Refuses a folder that holds links, FIFOs or devices, whatever their names; folders inside are not looked into.

    Raises:
        InputError: It holds one.
    """
    if folder.is_dir():
        require_plain(folder, sorted(os.listdir(folder)))
