"""A local folder as the location of a dataset."""

import json
import os
import re
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from ssdd_hub.data.dataset_card import CARDS
from ssdd_hub.data.dataset_home import Home, printable
from ssdd_hub.data.literal_folder import listed, literal, plain, plain_tree
from ssdd_hub.errors import InputError

_SAVED = ("dataset_dict.json", "state.json")
"""Indexes that `save_to_disk` writes."""

_LARGEST_INDEX = 2**24  # bytes, for a hundred thousand parts

_YAML = CARDS[1]

_READ_BESIDE = (*CARDS, *_SAVED, "dataset_info.json", "dataset_infos.json")
"""What `datasets` reads beside the data files."""


class LocalHome(Home):
    """A folder; `follow_links` also reads files outside of it to which links inside it lead."""

    def __init__(self, name: str, follow_links: bool = False) -> None:
        super().__init__(name)
        self._follow_links = follow_links
        path = Path(name).expanduser()
        self.folder = path.resolve() if ".." in path.parts else path.absolute()
        self.place = f"the folder '{self.folder}'"
        # Whether `save_to_disk` wrote it.
        self.saved = any((self.folder / name).is_file() for name in _SAVED)
        if (self.folder / _YAML).exists() and not (self.folder / _YAML).is_file():
            # `datasets` opens it whatever it is.
            raise InputError(f"'{_YAML}' of '{name}' must be a regular file: repair or remove it")
        names = self._names = listed(self.folder, follow_links)
        self.opened = str(plain_tree(self.folder, names))
        self._roots = (self.folder, self.folder.resolve())
        self._check_beside(self.folder)
        for split in self._check_saved(self.folder) if self.saved else ():
            folder = self.folder / split
            if folder.is_symlink() and not follow_links:
                raise _refuse_link(f"the split {split!r} of '{name}' must be a folder, and is a link", folder)
            self._check_beside(folder)
            # `save_to_disk` nests no deeper.
            self._check_saved(folder)
        for archive in (name for name in names if name.lower().endswith(".zip")):
            file = self.folder / archive
            # Opening a pipe would wait; a link out is refused where its file would be read.
            if file.is_file() and (follow_links or not self._leads_out(file)):
                self._check_archive(archive)

    def files(self) -> list[str]:
        """Returns the names within the folder of all files, and of linked folders that are not entered."""
        return self._names

    def inside(self, path: str) -> str | None:
        """Returns the name within the folder of a path."""
        place = None if "://" in path else self._inside(os.path.normpath(path))
        root = next((root for root in self._roots if place and place.is_relative_to(root)), None)
        return str(place.relative_to(root)) if place and root else None

    def is_file(self, name: str) -> bool:
        """Whether one of `files` is a regular file, or a link to one."""
        return (self.folder / name).is_file()

    def is_dangling(self, name: str) -> bool:
        """Whether one of `files` is a link that leads to nothing."""
        return (self.folder / name).is_symlink() and not os.path.exists(self.folder / name)

    def start(self, name: str) -> bytes:
        """Returns the first bytes of one of `files`; none of what is no file in the folder."""
        file = self.folder / name
        if not file.is_file() or self._leads_out(file) and not self._follow_links:
            return b""
        try:
            with file.open("rb") as opened:
                return opened.read(16)
        except OSError:  # cannot be read
            return b""

    def is_closed(self, name: str) -> bool:
        """Whether one of `files` is a folder that cannot be listed."""
        return (self.folder / name).is_dir() and not (self.folder / name).is_symlink()

    def check_linked_folders(self) -> None:
        """Refuses linked folders unless links are followed: `datasets` would leave out what is in them."""
        for name in () if self._follow_links else self._names:
            place = self.folder / name
            if place.is_symlink() and place.is_dir() and not re.search(r"(^|/)\.", name):
                shown = printable(name)
                problem = f"the folder '{shown}' of '{self.name}' is not entered: the link '{shown}' leads"
                raise _refuse_link(problem, place)

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
        """Returns the file's path in the tree of links, if there is one."""
        place, tree = Path(file), Path(self.opened)
        linked = tree != self.folder and place.is_relative_to(self.folder)
        return str(tree / plain(str(place.relative_to(self.folder)))) if linked else file

    def shown(self, path: str) -> str:
        """Returns the path within the folder where it has one."""
        return printable(name) if (name := self.inside(path)) else super().shown(literal(path))

    def reason(self, error: BaseException) -> str:
        """Returns the message of an error of `datasets`, in one line, with the original names."""
        return literal(super().reason(error).replace(self.opened, str(self.folder)))

    def _find_card(self, file: str) -> Path | None:
        return self.folder / file

    def check_link(self, subject: str, file: str) -> None:
        """Refuses a file that a link out of the folder leads to, unless links are followed."""
        path = Path(file)
        if self._follow_links or not self._leads_out(path):
            return
        steps = [step for step in (*reversed(path.parents), path) if step.is_symlink() and self._inside(str(step))]
        link = next(filter(self._leads_out, steps), path)
        raise _refuse_link(f"{subject} must lie in {self.place}, and the link '{self.shown(str(link))}' leads", link)

    def _leads_out(self, file: Path) -> bool:
        return not Path(os.path.realpath(file)).is_relative_to(self._roots[1])

    def _check_beside(self, folder: Path) -> None:
        for name in _READ_BESIDE:
            if os.path.lexists(folder / name):
                self.check_link(f"'{name}' of '{self.name}'", str(folder / name))

    def _check_archive(self, name: str) -> None:
        """Refuses members whose names `datasets` would take for something else, and leave out."""
        try:
            with ZipFile(self.folder / name) as archive:
                members = archive.namelist()
        except (OSError, ValueError, BadZipFile):
            return  # reading it reports what is wrong
        for member in members:
            if "::" in member or set(member.split("/")[0]) & set("[]"):
                raise InputError(
                    f"the archive '{name}' of '{self.name}' holds {member!r}: names in archives must hold no '::', "
                    "and their first part no brackets; rename it, or unpack the archive into the folder"
                )

    def _check_saved(self, folder: Path) -> list[str]:
        """Refuses indexes with parts that lie elsewhere, which `save_to_disk` never writes; returns the splits."""
        splits: list[str] = []
        for index in (name for name in _SAVED if (folder / name).is_file()):
            stated = f"'{index}' of '{self.name}'"
            if (size := (folder / index).stat().st_size) > _LARGEST_INDEX:
                raise InputError(f"{stated} must be of at most {_LARGEST_INDEX} bytes, got {size}")
            try:
                content = json.loads((folder / index).read_text("utf-8"))
                parts = [str(split) for split in content.get("splits") or []]
                tables = [str(table["filename"]) for table in content.get("_data_files") or []]
            except RecursionError as error:
                raise InputError(f"{stated} is nested too deep to be read: repair it") from error
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # `datasets` reports what is wrong with it
            for name in parts + tables:
                if name in ("", ".", "..") or set(name) & set("/\\\0") or "::" in name:
                    raise InputError(f"{stated} names {name!r} as a part: {self.required}")
            if len({*parts}) < len(parts):
                raise InputError(f"{stated} must name each split once, and names one twice: repair it")
            for table in tables:
                self.check_link(f"the table {table!r} of '{self.name}'", str(folder / table))
            splits += parts
        return splits


def _refuse_link(problem: str, link: Path) -> InputError:
    return InputError(
        f"{problem} to '{printable(os.path.realpath(link))}': pass --data.follow-links true if the links are yours, "
        "or put what it leads to in the link's place"
    )
