"""Where a dataset lives, a local folder or a repository of the Hub; nothing outside of it is opened or asked for.

A dataset is somebody else's data: its card, its tables and its index of images name further files, which `datasets`
would take from anywhere.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ssdd_hub.dataset_card import config_names, data_patterns, is_address, licence_text, read_card
from ssdd_hub.errors import InputError
from ssdd_hub.literal_folder import literal, plain, plain_tree

_ARCHIVES = ("zip", "gzip", "bz2", "xz", "lz4", "zstd")
"""How addresses begin by which `datasets` reads inside files: `zip://cat/1.png::/folder/cats.zip`."""

_SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` leaves in its folders."""

_YAML = ".huggingface.yaml"
"""What adds to a card."""


class Place(NamedTuple):
    """A file that may be opened.

    Attributes:
        file: Its absolute path, or its address on the Hub.
        protocol: How to read inside it, `zip` for example; empty for the file itself.
        member: What to read there.
    """

    file: str
    protocol: str = ""
    member: str = ""


class Home:
    """Where a dataset lives.

    Args:
        name: What the user called it.

    Attributes:
        place: What a message calls it.
        opened: What `datasets` is asked to open.
    """

    place: str
    opened: str

    def __init__(self, name: str) -> None:
        self.name = name

    def find(self, path: str) -> Place | None:
        """Returns what may be opened for a path or address in the data, and None if it lies elsewhere."""
        protocol, separator, rest = path.partition("://")
        if not separator or protocol not in _ARCHIVES:
            file = self._find_file(path)
            return Place(file) if file else None
        # Names may hold `::` too, so the archive is what exists among all that follows one.
        found = []
        for match in re.finditer("(?=::)", rest):
            member, archive = rest[: match.start()], rest[match.start() + 2 :]
            if file := self._find_file(archive) if "://" in archive or os.path.isabs(archive) else None:
                found.append(Place(file, protocol, member))
        return next((place for place in found if os.path.exists(place.file)), found[0] if found else None)

    def _find_file(self, path: str) -> str | None:
        raise NotImplementedError

    def plain(self, file: str) -> str:
        """Returns a path or address of the same file that holds no `::`."""
        return file

    def shown(self, path: str) -> str:
        """Returns what a message calls a file of the data; published cards should not show somebody's folders."""
        name = path.partition("::")[0] if path.partition("://")[0] in _ARCHIVES else path
        return _printable(Path(name).name)

    def cards(self, revision: str | None) -> list[dict[str, Any]]:
        """Returns the metadata of the card, and of what adds to it, as far as they can be read."""
        raise NotImplementedError

    def licence(self, revision: str | None) -> str | None:
        """Returns what the card states."""
        return licence_text(self.cards(revision)[0].get("license"))

    def check_cards(self, revision: str | None) -> None:
        """Refuses a card that sends `datasets` elsewhere, before it goes there.

        Raises:
            InputError: A configuration names files outside of this dataset, or would be prepared outside of the cache.
        """
        for card in self.cards(revision):
            for pattern in data_patterns(card):
                if not self._is_pattern_inside(pattern):
                    raise InputError(f"the card of '{self.name}' names {pattern!r} as data: {self._required}")
            for name in config_names(card):
                if name in (".", ".."):
                    raise InputError(f"the card of '{self.name}' calls a configuration '{name}': give it another name")

    def check_files(self, files: Iterable[str]) -> None:
        """Refuses data files outside of this dataset.

        Raises:
            InputError: There is one.
        """
        for file in files:
            if self.find(file) is None:
                raise InputError(f"the dataset '{self.name}' names {file!r} as data: {self._required}")

    def refuse(self, where: str, path: str) -> InputError:
        """Returns the error about an image that lies elsewhere."""
        return InputError(f"the image at {where} has the path {path!r}: {self._required}")

    @property
    def _required(self) -> str:
        return f"all its files must lie in {self.place}; move them there, or mend what names them"

    def _is_pattern_inside(self, pattern: str) -> bool:
        if is_address(pattern) or os.path.isabs(pattern):
            return self._find_file(pattern) is not None
        return os.path.normpath(pattern).split(os.sep)[0] != ".."


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
        tree = plain_tree(self.folder)
        self.opened = str(tree)
        self._roots = (self.folder, self.folder.resolve())
        if self.saved:
            self._check_saved(self.folder)

    def _find_file(self, path: str) -> str | None:
        if "://" in path or "\0" in path:
            return None
        # Paths of tables that were made elsewhere are relative to where that was, mostly the folder itself.
        for place in (os.path.abspath(path), os.path.normpath(os.path.join(self.folder, path))):
            if (inside := self._inside(place)) is not None:
                return str(inside)
        return None

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
        return _printable(str(inside.relative_to(root))) if inside and root else super().shown(literal(path))

    def cards(self, revision: str | None) -> list[dict[str, Any]]:
        """Returns the metadata of `README.md` and of `.huggingface.yaml`; a folder has no revisions."""
        return [read_card(self.folder / name) for name in ("README.md", _YAML)]

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


class HubHome(Home):
    """A repository of the Hub, with what the client keeps of it.

    Args:
        name: Its id.

    Attributes:
        commit: The commit that is read, once it is known.
    """

    def __init__(self, name: str) -> None:
        from huggingface_hub import constants

        super().__init__(name)
        self.opened = name
        self.place = f"the repository '{name}' of the Hub"
        self.commit: str | None = None
        self._snapshots = (
            Path(constants.HF_HUB_CACHE).absolute() / f"datasets--{name.replace('/', '--')}" / "snapshots"
        )

    def _find_file(self, path: str) -> str | None:
        root = f"hf://datasets/{self.name}"
        if os.path.isabs(path):
            place = Path(os.path.normpath(path))
            return str(place) if place.is_relative_to(self._snapshots) and place != self._snapshots else None
        address = path if "://" in path else f"{root}{'@' + self.commit if self.commit else ''}/{path}"
        within = address.removeprefix(root)
        outside = within == address or within[:1] not in ("@", "/") or "::" in within or ".." in within.split("/")
        return None if outside else address

    def cards(self, revision: str | None) -> list[dict[str, Any]]:
        """Returns the metadata of the card."""
        from huggingface_hub import hf_hub_download

        try:
            return [read_card(Path(hf_hub_download(self.name, "README.md", repo_type="dataset", revision=revision)))]
        except (OSError, ValueError):  # it has none, or cannot be reached
            return [{}]


def find_home(name: str) -> LocalHome | HubHome:
    """Returns where the dataset of this name lives: a folder if there is one, else a repository of the Hub.

    Args:
        name: A folder's path, taken literally, or a Hub id.

    Raises:
        InputError: It is neither, or the name of a format, by which `datasets` would read the working directory.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return LocalHome(name)
        exists = path.exists()
    except (OSError, ValueError):  # too long, or with a null character
        exists = False
    if exists:
        raise InputError(f"'{name}' is a file; --data.name takes a Hub id or the folder that holds the images")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise InputError(f"the folder '{name}' does not exist; --data.name takes a Hub id or an existing folder")
    if name in _PACKAGED_DATASETS_MODULES:
        raise InputError(
            f"'{name}' is a format and no dataset, and there is no folder of that name here; --data.name takes a Hub "
            "id or an existing folder, whatever the format of its files"
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"'{name}' is neither a folder that exists nor a Hub id, which is a name or owner/name of letters, "
            "digits, '-', '_' and '.'; --data.name takes one of these, or 'digits'"
        ) from error
    if name.startswith("buckets/"):
        raise InputError(
            f"'{name}' is a bucket; --data.name takes the id of a dataset on the Hub or an existing folder"
        )
    return HubHome(name)


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
