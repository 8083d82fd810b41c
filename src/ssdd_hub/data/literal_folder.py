"""Folders with any name, under a path that `datasets` reads literally.

`datasets` takes the path of a folder for a pattern (`run[12]` matches `run1`) and `::` in a path for the way into an
archive. Such a folder is read through a tree of symbolic links with plain names.
"""

import os
import re
import shutil
import uuid
from pathlib import Path

from ssdd_hub.errors import InputError
from ssdd_hub.record import hash_json

# Of a path: what fsspec's `glob` expands, what separates the hops of an address, variables of the environment, which
# `datasets` fills in, what it takes for a script, line breaks, at which its own patterns end, and bytes that are not
# UTF-8, which no table can hold.
_SPECIAL_PATH = re.compile(r"[*?\[\]\r\n\ud800-\udfff]|::|\$[\w{]|\.py$")
# Inside a folder, names come from a listing, which takes all but these literally.
_SPECIAL_NAME = re.compile(r":(?=:)|\$(?=[\w{])|[\r\n]")

# Precedes the hexadecimal code of a character; a private-use one, which no alphabet has.
_ESCAPE = "\uf8fe"


def listed(folder: Path, follow_links: bool = False) -> list[str]:
    """Returns the relative paths of all files, and of folders that are not entered: linked ones, and unreadable ones.

    `datasets` enters none. With `follow_links` all are, but for those that lead to a folder that they lie in, whose
    files are read anyway.
    """
    names: list[str] = []
    # Of each folder to come, the real paths of all that it lies in, as far as it was reached by way of them.
    above = {str(folder): frozenset[str]()}
    unread: list[str] = []
    walk = os.walk(folder, onerror=lambda error: unread.append(error.filename), followlinks=follow_links)
    for parent, folders, files in walk:
        within = above.pop(parent) | {os.path.realpath(parent)} if follow_links else frozenset()
        closed = []
        for name in folders:
            path = os.path.join(parent, name)
            if not follow_links and os.path.islink(path) or follow_links and os.path.realpath(path) in within:
                closed.append(name)
            elif follow_links:
                above[path] = within
        folders[:] = [name for name in folders if name not in closed]
        names += [os.path.relpath(os.path.join(parent, name), folder) for name in files + closed]
    return sorted([*names, *(os.path.relpath(path, folder) for path in unread)])


def plain_tree(folder: Path, names: list[str]) -> Path:
    """Returns the folder itself where its names are harmless and in no linked folder, otherwise a tree of links.

    The tree lies in the cache of `datasets`, named by a hash of the folder's absolute path and its `listed` names. It
    never changes, so that processes can share it and `datasets` finds what it has prepared from it.
    """
    # `datasets` follows the links in the folder's own path.
    if not any(map(_SPECIAL_PATH.search, map(str, (folder, folder.resolve())))):
        parents = {*map(Path, {*map(os.path.dirname, names)})}
        parents |= {above for parent in parents for above in parent.parents}
        linked = any((folder / parent).is_symlink() for parent in parents - {Path()})
        if not linked and not any(map(_SPECIAL_NAME.search, names)):
            return folder
    import datasets

    trees = Path(datasets.config.HF_DATASETS_CACHE).expanduser().absolute() / "ssdd_hub_links"
    problem = (
        f"the folder '{folder}' holds linked folders, or characters that need links with plain names, which cannot be "
        f"made in {trees}"
    )
    if _SPECIAL_PATH.search(str(trees)):
        raise InputError(f"{problem}: its path has such characters too; set HF_DATASETS_CACHE to a plain path")
    tree = trees / hash_json([str(folder), names])[:32]
    if not tree.exists():
        try:
            _make_tree(tree, folder, names)
        except OSError as error:
            raise InputError(f"{problem}: {error.strerror}; set HF_DATASETS_CACHE to a folder with room") from error
    return tree


def literal(name: str) -> str:
    """Returns the original of a name or path in a tree of links."""
    return re.sub(_ESCAPE + "([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name)


def plain(name: str) -> str:
    """Returns a name or path as it is in a tree of links."""
    return _SPECIAL_NAME.sub(lambda match: f"{_ESCAPE}{ord(match[0]):02x}", name)


def _make_tree(tree: Path, folder: Path, names: list[str]) -> None:
    growing = tree.with_name(f"{tree.name}.{uuid.uuid4().hex}")
    try:
        growing.mkdir(parents=True)
        for name in names:
            link = growing / plain(name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder / name)
        growing.rename(tree)
    except OSError:
        if not tree.exists():  # another process was not first
            raise
    finally:
        shutil.rmtree(growing, ignore_errors=True)
