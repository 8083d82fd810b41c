"""Repositories of the Hub on loopback: users, files, commits and refs."""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from hub_faults import Refused

_BLOCK = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Blob:
    """A file in a commit: its size and sha256, its name in git, and whether git holds a pointer in place of it."""

    size: int
    sha256: str
    oid: str
    lfs: bool

    @classmethod
    def regular(cls, content: bytes) -> "Blob":
        return cls(len(content), hashlib.sha256(content).hexdigest(), git_oid("blob", content), False)

    @classmethod
    def large(cls, sha256: str, size: int) -> "Blob":
        return cls(size, sha256, git_oid("blob", _pointer(sha256, size)), True)

    @property
    def pointer_size(self) -> int:
        return len(_pointer(self.sha256, self.size))

    @property
    def told(self) -> dict[str, Any]:
        """What a list of the files of a repository says."""
        lfs = {"sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return {"size": self.size, "blobId": self.oid, **({"lfs": lfs} if self.lfs else {})}

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A commit: its sha, title, parent, files by path, date and author."""

    sha: str
    title: str
    parent: str | None
    files: dict[str, Blob]
    date: str
    author: str

    def under(self, path: str) -> dict[str, Blob]:
        """Returns the file of that path, or the files in that folder."""
        return {name: blob for name, blob in self.files.items() if name == path or name.startswith(f"{path}/")}

    def folder(self, path: str, recursive: bool = False) -> list[str]:
        """Returns the paths of the files and folders in a folder, the root by an empty path."""
        prefix = f"{path}/" if path else ""
        inside = [name[len(prefix) :].split("/") for name in self.files if name.startswith(prefix)]
        depths = [(parts, depth) for parts in inside for depth in range(1, len(parts) + 1 if recursive else 2)]
        return sorted({prefix + "/".join(parts[:depth]) for parts, depth in depths})


@dataclass
class Repo:
    """A repository; `commits` has the newest last, those of pull requests too, `objects` the large files by sha256."""

    kind: str
    id: str
    private: bool = False
    gated: bool | str = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def path(self) -> str:
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def find(self, revision: str) -> Commit:
        """Returns the commit of a branch, tag, pull request, or sha of at least seven digits."""
        sha = (self.branches | self.tags | self.pulls).get(revision.removeprefix("refs/heads/"), revision)
        for commit in self.commits:
            if len(sha) >= 7 and commit.sha.startswith(sha):
                return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, files: Mapping[str, Blob], parent: str | None, title: str, author: str) -> str:
        """Adds a commit that nothing refers to yet; returns its sha."""
        facts = json.dumps([len(self.commits), parent, title, {path: blob.oid for path, blob in files.items()}])
        sha = hashlib.sha1(facts.encode()).hexdigest()
        self.commits.append(Commit(sha, title, parent, dict(sorted(files.items())), now(), author))
        return sha


@dataclass(frozen=True)
class User:
    """Whoever has a token."""

    name: str
    role: str
    orgs: tuple[str, ...]

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.orgs)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(kind: str, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(content), content)).hexdigest()


def front_matter(text: str) -> Any:
    """Returns what the YAML block at the head of a card says; None where there is none.

    Raises:
        yaml.YAMLError: It is no YAML.
    """
    block = _BLOCK.match(text)
    return yaml.safe_load(block[1]) if block else None


def tags_of(card: Any) -> list[str]:
    """Returns what a repository of this card is found by."""
    if not isinstance(card, dict):
        return ["region:us"]
    bare = [*_listed(card.get("tags")), *_listed(card.get("library_name")), *_listed(card.get("pipeline_tag"))]
    keys = ("license", "language", "task_categories", "size_categories", "base_model", "datasets")
    named = [f"{key.replace('datasets', 'dataset')}:{value}" for key in keys for value in _listed(card.get(key))]
    return [*bare, *named, "region:us"]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
