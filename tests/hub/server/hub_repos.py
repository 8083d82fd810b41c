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
class User:
    """The owner of a token, with the namespaces that it is good for."""

    name: str
    role: str
    orgs: tuple[str, ...]


@dataclass(frozen=True)
class Blob:
    """A file in a commit: its size and sha256, its name in git, and whether git holds a pointer in its place."""

    size: int
    sha256: str
    oid: str
    lfs: bool

    def told(self, sha256: str) -> dict[str, Any]:
        """Returns what the Hub states of a large file, whose sha256 it names one way or another."""
        pointer = len(_pointer(self.sha256, self.size))
        return {"lfs": {sha256: self.sha256, "size": self.size, "pointerSize": pointer}} if self.lfs else {}


@dataclass(frozen=True)
class Commit:
    """A commit, with all files by path."""

    sha: str
    title: str
    files: dict[str, Blob]
    date: str

    def entries(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Returns what the Hub states of files and folders in a folder, the root by an empty path."""
        found: dict[str, dict[str, Any]] = {}
        for path, blob in self.files.items():
            if not path.startswith(prefix := f"{folder}/" if folder else ""):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive or len(parts) < 2 else 2):
                inner = prefix + "/".join(parts[:depth])
                tree = {"type": "directory", "oid": git_oid("tree", inner.encode()), "size": 0, "path": inner}
                found.setdefault(inner, tree)
            if recursive or len(parts) == 1:
                found[path] = self.entry(path, blob)
        return list(found.values())

    @staticmethod
    def entry(path: str, blob: Blob) -> dict[str, Any]:
        return {"type": "file", "oid": blob.oid, "size": blob.size, "path": path, **blob.told("oid")}


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

    def add(self, files: Mapping[str, Blob], parent: str | None, title: str) -> str:
        """Adds a commit that nothing refers to yet; returns its sha."""
        facts = json.dumps([len(self.commits), parent, title, {path: blob.oid for path, blob in files.items()}])
        sha = hashlib.sha1(facts.encode()).hexdigest()
        self.commits.append(Commit(sha, title, dict(sorted(files.items())), now()))
        return sha


def make_blob(size: int, sha256: str, content: bytes | None) -> Blob:
    """Returns a small file, or, without its content, a large one."""
    held = _pointer(sha256, size) if content is None else content
    return Blob(size, sha256, git_oid("blob", held), content is None)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(kind: str, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(content), content)).hexdigest()


def front_matter(text: str) -> Any:
    """Returns what the YAML block at the head of a card says, None where there is none, or raises a `YAMLError`."""
    block = _BLOCK.match(text)
    return yaml.safe_load(block[1]) if block else None
