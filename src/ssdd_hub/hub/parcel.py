"""A parcel of files for a repository: what they are, and whether the Hub holds them."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile

from ssdd_hub.errors import InputError
from ssdd_hub.hub.client import Token, explained, patiently

_PART = 2**20  # bytes read at once


@dataclass(frozen=True)
class Content:
    """The content of a file, and what it was when it was packed.

    Attributes:
        source: The bytes, or the file that holds them.
        size: Their number.
        sha256: Their digest.
    """

    source: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, source: Path | bytes) -> "Content":
        """Reads the source once, a MiB at a time."""
        if isinstance(source, bytes):
            return cls(source, len(source), hashlib.sha256(source).hexdigest())
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as file:
            for part in iter(partial(file.read, _PART), b""):
                digest.update(part)
                size += len(part)
        return cls(source, size, digest.hexdigest())

    def is_in(self, path: Path) -> bool:
        """Whether a file is there and holds the same."""
        return path.is_file() and path.stat().st_size == self.size and Content.of(path).sha256 == self.sha256


@dataclass(frozen=True)
class Parcel:
    """What is to be published.

    Attributes:
        kind: `dataset` or `model`.
        files: Contents by path in the repository.
        owns: Whether a publication of this sort may write or remove a path.
        mark: The path by which a repository is known to hold such a publication, which a newer one may replace.
        check: Called with a folder of the files as they were fetched again; raises `InputError`.
        clashes: Whether a path of somebody else's in the repository would spoil the publication. The client leaves out
            of a commit what a `.gitignore` names, without a word.
    """

    kind: str
    files: Mapping[str, Content]
    owns: Callable[[str], bool]
    mark: str
    check: Callable[[Path], None] = field(default=lambda folder: None)
    clashes: Callable[[str], bool] = field(default=lambda path: path == ".gitignore")

    def missing_in(self, folder: Path, paths: Iterable[str]) -> list[str]:
        """Returns which of the paths a folder lacks, or holds with another content."""
        return [path for path in paths if not self.files[path].is_in(folder / path)]


def is_held(parcel: Parcel, repo_id: str, commit: str, absent: Iterable[str] = (), token: Token = None) -> bool:
    """Whether a commit has the files of a parcel, to the byte, and none of those that are to be absent.

    Large files are compared by the sha256 that the Hub states; the others are fetched.

    Args:
        parcel: The files.
        repo_id: `owner/name`.
        commit: Its sha.
        absent: Paths that the commit must not have.
        token: A Hub token; by default the one of the login.

    Raises:
        Exception: What the client raises.
    """
    api, paths = HfApi(token=token), [*parcel.files, *absent]
    found = patiently(lambda: api.get_paths_info(repo_id, paths, repo_type=parcel.kind, revision=commit))
    there = {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
    stated = {path: entry.lfs.sha256 for path, entry in there.items() if entry.lfs is not None}
    if there.keys() != parcel.files.keys() or any(parcel.files[path].sha256 != stated[path] for path in stated):
        return False
    small = [path for path in there if path not in stated]
    with tempfile.TemporaryDirectory(prefix="ssdd-hub-compare-") as scratch:
        _download_anew(parcel, repo_id, commit, small, Path(scratch), token)
        return not parcel.missing_in(Path(scratch), small)


def verify_commit(parcel: Parcel, repo_id: str, commit: str, token: Token = None) -> None:
    """Fetches a commit again, past every cache, and compares; twice, since a download may be damaged too.

    Args:
        parcel: What was sent.
        repo_id: `owner/name`.
        commit: Its sha.
        token: A Hub token; by default the one of the login.

    Raises:
        InputError: It cannot be fetched, or is not what was sent.
    """
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="ssdd-hub-verify-") as scratch:
            with explained(f"fetching {repo_id} again to verify commit {commit[:8]}", token):
                _download_anew(parcel, repo_id, commit, list(parcel.files), Path(scratch), token)
            wrong = parcel.missing_in(Path(scratch), parcel.files)
            if not wrong:
                return parcel.check(Path(scratch))
    raise InputError(
        f"{repo_id} is damaged at commit {commit[:8]}: {', '.join(wrong)} came back otherwise than sent, twice. It "
        "was not tagged: publish again, and tell the Hub's operators if it stays so"
    )


def _download_anew(parcel: Parcel, repo_id: str, commit: str, names: list[str], folder: Path, token: Token) -> None:
    # With an empty cache, since the client would copy what it has in its own, damaged or not.
    download(parcel.kind, repo_id, commit, names, folder, token, cache=folder / ".cache" / "empty")


def download(
    kind: str, repo_id: str, commit: str, names: list[str], folder: Path, token: Token, cache: Path | None = None
) -> None:
    """Fetches files of a commit into a folder, and nothing else.

    Args:
        kind: `dataset` or `model`.
        repo_id: `owner/name`.
        commit: Its sha.
        names: Their paths in the repository, plain names and not patterns.
        folder: Where they go.
        token: A Hub token; by default the one of the login.
        cache: The cache from which the client copies what it has; by default its own.

    Raises:
        Exception: What the client raises.
    """

    def _fetch() -> None:
        snapshot_download(
            repo_id,
            repo_type=kind,
            revision=commit,
            local_dir=folder,
            cache_dir=cache,
            allow_patterns=names,
            token=token,
        )

    if names:
        patiently(_fetch)
