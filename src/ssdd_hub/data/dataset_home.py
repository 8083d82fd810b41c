"""The location of a dataset, a local folder or a Hub repository; files outside of it are refused.

A dataset is untrusted: its card, its tables and its index of images name further files, which `datasets` would take
from anywhere.
"""

import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ssdd_hub.data.dataset_card import CARDS, is_address, licence_text, list_configs, list_patterns, read_card
from ssdd_hub.errors import InputError
from ssdd_hub.text import first_line

# Beginnings of addresses by which `datasets` reads inside files: `zip://cat/1.png::/folder/cats.zip`.
_ARCHIVES = ("zip", "gzip", "bz2", "xz", "lz4", "zstd")


class Place(NamedTuple):
    """A file that may be opened, or a member of it."""

    file: str  # absolute path, or address on the Hub
    protocol: str = ""  # how to read inside it, such as `zip`
    member: str = ""


class Home:
    """The location of a dataset, which the user called `name`."""

    place: str  # in messages
    opened: str  # by `datasets`

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
        raise NotImplementedError(f"{type(self).__name__} must implement _find_file(path)")

    def plain(self, file: str) -> str:
        """Returns a path or address of the same file that holds no `::`."""
        return file

    def shown(self, path: str) -> str:
        """Returns the name of a data file for messages; published cards must not show a user's folders."""
        if path.startswith("data:"):
            return "data: URL"
        name = path.partition("::")[0] if path.partition("://")[0] in _ARCHIVES else path
        return printable(Path(name).name)

    def reason(self, error: BaseException) -> str:
        """Returns the message of an error of `datasets`, in one line."""
        return first_line(error)

    @cached_property
    def cards(self) -> list[dict[str, Any]]:
        """The metadata of each of `CARDS`; an `InputError` where one cannot be read."""
        found = map(self._find_card, CARDS)
        return [read_card(card, self.name) if card else {} for card in found]

    def _find_card(self, file: str) -> Path | None:
        raise NotImplementedError(f"{type(self).__name__} must implement _find_card(file)")

    @property
    def patterns(self) -> list[str]:
        """The patterns of files and folders that the card names as data."""
        return [pattern for card in self.cards for config in list_configs(card) for pattern in list_patterns(config)]

    @property
    def licence(self) -> str | None:
        """The licence that the card states."""
        return licence_text(self.cards[0].get("license"))

    def files(self) -> Iterable[str]:
        """Returns the names within the dataset of all its files; none where they are not known."""
        raise NotImplementedError(f"{type(self).__name__} must implement files()")

    def inside(self, path: str) -> str | None:
        """Returns the name within the dataset of a data file."""
        raise NotImplementedError(f"{type(self).__name__} must implement inside(path)")

    def is_file(self, name: str) -> bool:
        """Whether one of `files` is a regular file, or a link to one."""
        return True

    def is_dangling(self, name: str) -> bool:
        """Whether one of `files` is a link that leads to nothing."""
        return False

    def start(self, name: str) -> bytes:
        """Returns the first bytes of one of `files`; none where that would fetch it, or leave the dataset."""
        return b""

    def is_closed(self, name: str) -> bool:
        """Whether one of `files` is a folder that cannot be listed."""
        return False

    def check_linked_folders(self) -> None:
        """Refuses linked folders that are not entered."""

    def check_link(self, subject: str, file: str) -> None:
        """Refuses a file of `find`, called `subject` in the message, that a link out of the dataset leads to."""

    def check_cards(self) -> None:
        """Refuses cards that name files outside of this dataset, or a configuration prepared outside of the cache."""
        for config in (config for card in self.cards for config in list_configs(card)):
            for pattern in list_patterns(config):
                if not self._is_pattern_inside(pattern):
                    raise InputError(f"the card of '{self.name}' names {pattern!r} as data: {self.required}")
            if (name := config.get("config_name")) in (".", ".."):
                raise InputError(f"the card of '{self.name}' calls a configuration '{name}': give it another name")

    def check_files(self, files: Iterable[str]) -> None:
        """Refuses data files outside of this dataset, also by a link."""
        for file in files:
            place = self.find(file)
            if place is None:
                raise InputError(f"the dataset '{self.name}' names {file!r} as data: {self.required}")
            self.check_link(f"the data file {self.shown(file)!r} of '{self.name}'", place.file)

    @property
    def required(self) -> str:
        """The end of messages about files outside of this dataset."""
        return f"all its files must lie in {self.place}; move them there, or correct what names them"

    def _is_pattern_inside(self, pattern: str) -> bool:
        if is_address(pattern) or os.path.isabs(pattern):
            return self._find_file(pattern) is not None
        return os.path.normpath(pattern).split(os.sep)[0] != ".."


class HubHome(Home):
    """A repository of the Hub, with the client's cache of it."""

    def __init__(self, name: str, revision: str | None = None) -> None:
        from huggingface_hub import constants

        super().__init__(name)
        self._revision = revision
        self.opened = name
        self.place = f"the repository '{name}' of the Hub"
        self.commit: str | None = None  # once it is known
        cached = Path(constants.HF_HUB_CACHE).absolute() / f"datasets--{name.replace('/', '--')}"
        self._snapshots = cached / "snapshots"

    def _find_file(self, path: str) -> str | None:
        root = f"hf://datasets/{self.name}"
        if os.path.isabs(path):
            place = Path(os.path.normpath(path))
            return str(place) if place.is_relative_to(self._snapshots) and place != self._snapshots else None
        address = path if "://" in path else f"{root}{'@' + self.commit if self.commit else ''}/{path}"
        within = address.removeprefix(root)
        outside = within == address or within[:1] not in ("@", "/") or "::" in within or ".." in within.split("/")
        return None if outside else address

    @cached_property
    def _names(self) -> list[str]:
        from huggingface_hub import HfApi

        try:
            return list(
                HfApi().list_repo_files(self.name, repo_type="dataset", revision=self.commit or self._revision)
            )
        except (OSError, ValueError):  # cannot be reached
            return []

    def files(self) -> Iterable[str]:
        """Returns the names of all files of the repository; none without a connection."""
        return self._names

    def inside(self, path: str) -> str | None:
        """Returns the name within the repository of an address, or of a file in the client's cache."""
        if os.path.isabs(path):
            place = Path(os.path.normpath(path))
            parts = place.relative_to(self._snapshots).parts if place.is_relative_to(self._snapshots) else ()
            return "/".join(parts[1:]) or None
        match = re.fullmatch(rf"hf://datasets/{re.escape(self.name)}(?:@[^/]*)?/(.+)", path)
        return match[1] if match else None

    def _find_card(self, file: str) -> Path | None:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.name, file, repo_type="dataset", revision=self._revision))
        except (OSError, ValueError):  # it has none, or cannot be reached
            return None


def printable(name: str) -> str:
    """Returns a name without characters that would break a line or hide something."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
