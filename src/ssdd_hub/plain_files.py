"""Checks that files of an untrusted folder are regular files: links, FIFOs and devices are refused.

A link may lead to a private file, which would end up in a report or a repository; a FIFO or a device may give bytes
without end, or none for ever.
"""

import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ssdd_hub.errors import InputError

LEAST_BYTES = 2**26
"""Bytes that a file may hold by what it states: a view or a compressed archive makes gigabytes of a few bytes."""
_MOST_GROWTH = 2
_LARGEST_HEADER = 2**21  # bytes; a tensor takes a hundred, and the largest networks have some thousands


def require_modest_weights(path: Path) -> None:
    """Raises an `InputError` for a file of weights that takes far more time or memory than its size lets expect.

    In safetensors, a list of hundreds of thousands of empty tensors does; otherwise, a compressed archive.
    """
    if path.suffix != ".safetensors":
        require_uncompressed(path)
        return
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        raise InputError(
            f"the header of {path}, its list of tensors, must be of at most {_LARGEST_HEADER:,} bytes; it states "
            f"{length:,}: fetch the file again, or save fewer tensors"
        )


def require_uncompressed(path: Path) -> None:
    """Raises an `InputError` for an archive, as of weights, that holds far more than it takes; reads its list.

    Neither PyTorch nor timm compresses what it saves.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        held, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if held > max(LEAST_BYTES, _MOST_GROWTH * size):
        raise InputError(
            f"{path} is compressed: it has {size:,} bytes and unpacks to {held:,}, as PyTorch never writes. If you "
            "trust it, unpack it, and pack it again without compression"
        )


def find_irregular(folder: Path, name: str) -> str | None:
    """Returns what is wrong with an entry of a folder, None for a plain file, a folder and what is not there.

    Links of the Hub client's cache, from a snapshot to the file that has its bytes, are taken.

    Args:
        folder: The folder, which may itself be reached by a link.
        name: Relative path of the entry, with `/`; every part of it is looked at.
    """
    root = path = folder.resolve()
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
    """Raises an `InputError` where one of these entries, relative paths, is a link, FIFO or device."""
    for name in names:
        problem = find_irregular(folder, name)
        if problem:
            raise InputError(f"{folder / name} {problem}")


def require_plain_entries(folder: Path) -> None:
    """Raises an `InputError` for links, FIFOs or devices directly in a folder, whatever their names."""
    require_plain(folder, [entry.name for entry in _entries(folder)])


def require_plain_tree(folder: Path) -> None:
    """Raises an `InputError` for links, FIFOs or devices at any depth; the folder itself may be reached by a link."""
    # A folder of thousands of files is listed once; no file is looked at where the listing tells its kind.
    waiting = [folder]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                place = Path(entry.path)
                require_plain(place.parent, [place.name])


def require_readable_entries(folder: Path) -> None:
    """Raises an `InputError` for FIFOs or devices directly in a folder of the user's own, also behind links."""
    for entry in _entries(folder):
        if not entry.is_file() and not entry.is_dir() and Path(entry.path).exists():
            raise InputError(f"{entry.path} is neither a file nor a folder (a FIFO, socket or device): remove it")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns what a folder holds; nothing where there is none, or where another process has just removed it."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
