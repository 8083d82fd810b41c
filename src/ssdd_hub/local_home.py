"""A folder as the home of a dataset."""

import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from ssdd_hub.dataset_card import read_card
from ssdd_hub.dataset_home import Home, printable
from ssdd_hub.errors import InputError
from ssdd_hub.literal_folder import listed, literal, plain, plain_tree

_SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` leaves in its folders."""

_YAML = ".huggingface.yaml"
"""What adds to a card."""


class LocalHome(Home):
    """A folder.

    Args:
        name: What the user called it.

    Attributes:
        folder: Its absolute path.
        saved: Whether `save_to_disk` wrote it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        path = Path(name).expanduser()
        self.folder = path.resolve() if ".." in path.parts else path.absolute()
        self.place = f"the folder '{self.folder}'"
        self.saved = any((self.folder / name).is_file() for name in _SAVED)
        if (self.folder / _YAML).exists() and not (self.folder / _YAML).is_file():
            # `datasets` opens it whatever it is.
            raise InputError(f"'{_YAML}' of '{name}' must be a regular file: mend or remove it")
        names = listed(self.folder)
        self.opened = str(plain_tree(self.folder, names))
        self._roots = (self.folder, self.folder.resolve())
        if self.saved:
            self._check_saved(self.folder)
        for name in names:
            if name.lower().endswith(".zip") and (self.folder / name).is_file():  # a pipe would be waited for
                self._check_archive(name)

    def _find_file(self, path: str) -> str | None:
        if "://" in path or "\0" in path:
            return None
        # `datasets` takes relative paths from the working directory on; most tables mean from their own folder on.
        places = (os.path.abspath(path), os.path.normpath(os.path.join(self.folder, path)))
        found = [str(inside) for place in places if (inside := self._inside(place))]
        existing = next(filter(os.path.lexists, found), None)
        # `cache::/a/file` is an address, unless a file is called so.
        return existing or (found[0] if found and "::" not in path else None)

    def _inside(self, path: str) -> Path | None:
        tree = Path(self.opened)
        if tree != self.folder and Path(path).is_relative_to(tree):
            path = str(self.folder / literal(str(Path(path).relative_to(tree))))
        place = Path(path)
        return place if place not in self._roots and any(map(place.is_relative_to, self._roots)) else None

    def plain(self, file: str) -> str:
        """Returns its path in the tree of links, if there is one."""
        place, tree = Path(file), Path(self.opened)
        linked = tree != self.folder and place.is_relative_to(self.folder)
        return str(tree / plain(str(place.relative_to(self.folder)))) if linked else file

    def shown(self, path: str) -> str:
        """Returns the path within the folder where it has one."""
        inside = None if "://" in path else self._inside(os.path.normpath(path))
        root = next((root for root in self._roots if inside and inside.is_relative_to(root)), None)
        return printable(str(inside.relative_to(root))) if inside and root else super().shown(literal(path))

    def reason(self, error: BaseException) -> str:
        """Returns what an error of `datasets` says, in one line, with the names as they are."""
        return literal(super().reason(error).replace(self.opened, str(self.folder)))

    def cards(self, revision: str | None) -> list[dict[str, Any]]:
        """Returns the metadata of `README.md` and of `.huggingface.yaml`; a folder has no revisions."""
        return [read_card(self.folder / name) for name in ("README.md", _YAML)]

    def _check_archive(self, name: str) -> None:
        """Refuses members whose names `datasets` would take for something else, and leave out."""
        try:
            with ZipFile(self.folder / name) as archive:
                members = archive.namelist()
        except (OSError, ValueError, BadZipFile):
            return  # who reads it says what is wrong with it
        for member in members:
            if "::" in member or set(member.split("/")[0]) & set("[]"):
                raise InputError(
                    f"the archive '{name}' of '{self.name}' holds {member!r}: names in archives must hold no '::', "
                    "and their first part no brackets; rename it, or unpack the archive into the folder"
                )

    def _check_saved(self, folder: Path) -> None:
        """Refuses what `save_to_disk` never writes: parts of the dataset that lie elsewhere."""
        for index in _SAVED:
            try:
                content = json.loads((folder / index).read_text("utf-8")) if (folder / index).is_file() else {}
                splits = [str(split) for split in content.get("splits") or []]
                tables = [str(table["filename"]) for table in content.get("_data_files") or []]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # `datasets` says what is wrong with it
            for name in splits + tables:
                if name in ("", ".", "..") or set(name) & set("/\\\0") or "::" in name:
                    raise InputError(f"'{index}' of '{self.name}' names {name!r} as a part: {self._required}")
            for split in splits:
                self._check_saved(folder / split)
