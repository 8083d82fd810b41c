"""Downloads distilled sets: only their own files, with the checksums that the Hub states, all of them or none."""

import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoSibling

from ssdd_hub.errors import InputError, nearest
from ssdd_hub.files import replaced_folder
from ssdd_hub.hub.client import ERRORS, TRIES, Repo, Result, Token, hub_errors, is_passing
from ssdd_hub.record import (
    CARD_FILE,
    LARGEST_CARD,
    METADATA_FILE,
    MOST_BYTES,
    PREVIEW_FILE,
    SHARED_FILE,
    TRANSFORM_FILE,
)
from ssdd_hub.text import HUB_ID

_LOG = logging.getLogger(__name__)
_SHARD = "data/train-{0}-of-{0}.parquet".format("[0-9]" * 5)
# No `*`, which would also stand for `/` and `..`.
PATTERNS = [CARD_FILE, METADATA_FILE, PREVIEW_FILE, TRANSFORM_FILE, SHARED_FILE, _SHARD]
_OWN_NAME = re.compile("|".join(pattern.replace(".", r"\.") for pattern in PATTERNS), re.ASCII)
_FEW_TRIES = 3  # where a cached copy may do instead


def is_set_file(path: str) -> bool:
    """Whether a path in a repository is that of a file of a distilled set."""
    return _OWN_NAME.fullmatch(path) is not None


def clashes_with_set(path: str) -> bool:
    """Whether a foreign path spoils a set: `datasets` loads it with the set, or the client leaves parts unsent."""
    return path == ".gitignore" or (path.startswith("data/train-") and not is_set_file(path))


def fetch_set(
    repo_id: str, read: Callable[[Path], Result], revision: str | None = None, token: Token = None
) -> Result:
    """Downloads a set into the client's cache; returns what `read`, which checks a folder, makes of it.

    Raises:
        InputError: There is no such repository or revision, it holds no set, the Hub and the cache both lack it, the
            disk is full, the set comes damaged twice, or `read` refuses it.
    """
    repo = Repo(repo_id, token)
    folder, commit = _to_cache(repo, revision, "fetching", PATTERNS)
    if commit is None:
        return read(folder)
    result = _read(read, folder, repo, commit)
    with suppress(*ERRORS):
        # The client notes which commit the revision is: last, so that until then it knows the one before.
        snapshot(repo, revision, PATTERNS, tries=1)
    return result


def fetch_record(repo_id: str, revision: str | None = None, token: Token = None) -> Path:
    """Downloads the record of a set, and nothing else, into the client's cache; returns its folder there.

    Raises:
        InputError: As for `fetch_set`.
    """
    return _to_cache(Repo(repo_id, token), revision, "looking at", [METADATA_FILE])[0]


def pull_set(
    repo_id: str, folder: str | Path, check: Callable[[Path], None], revision: str | None = None, token: Token = None
) -> str:
    """Downloads a set into a folder, which appears complete and passed by `check`, or not at all; returns the commit.

    Raises:
        InputError: As for `fetch_set`, or the place is taken by something other than a set; it is then what it was.
    """
    repo, place = Repo(repo_id, token), Path(folder).resolve()
    _check_id(repo_id)
    with hub_errors(f"pulling {_name(repo, revision)} to {folder}", token), replaced_folder(place) as new:
        commit, files = _list(repo, revision)
        _check_room(repo_id, files.values(), place)
        _fetch(repo, commit, files, local_dir=new)
        shutil.rmtree(new / ".cache", ignore_errors=True)
        _read(check, new, repo, commit)
    return commit


def list_files(repo_id: str, revision: str, token: Token = None) -> list[str]:
    """Returns the paths of all files of a dataset repository, those of the set and others."""
    repo = Repo(repo_id, token)
    with hub_errors(f"looking at {_name(repo, revision)}", token):
        return repo.call(HfApi.list_repo_files, revision=revision, tries=2)


def snapshot(repo: Repo, revision: str | None, names: Iterable[str], **how: Any) -> Path:
    """Downloads files of a revision into the client's cache or a `local_dir`; returns the folder."""
    return Path(repo.call(HfApi.snapshot_download, revision=revision, allow_patterns=sorted(names), **how))


def _name(repo: Repo, revision: str | None) -> str:
    return f"{repo.repo_id} (revision {revision or 'main'})"


def _check_id(repo_id: str) -> None:
    if not HUB_ID.fullmatch(repo_id):
        missing = Path(repo_id)
        while not missing.parent.is_dir():
            missing = missing.parent
        beside = [entry.name for entry in missing.parent.iterdir() if entry.is_dir()]
        raise InputError(
            f"a set on the Hub is named owner/name, got {repo_id!r}; and there is no such folder here"
            f"{nearest(missing.name, beside)}"
        )


def _to_cache(repo: Repo, revision: str | None, doing: str, patterns: list[str]) -> tuple[Path, str | None]:
    """Downloads files of a set into the cache; returns their folder, and the commit if the Hub could be reached."""
    _check_id(repo.repo_id)
    doing = f"{doing} {_name(repo, revision)}"
    with hub_errors(doing, repo.token):
        try:
            commit, files = _list(repo, revision, _FEW_TRIES)
        except ERRORS as error:
            if not isinstance(error, OfflineModeIsEnabled) and not is_passing(error):
                raise
            reason = error
        else:
            if patterns != PATTERNS:
                files = {path: files[path] for path in patterns}
            where = {"repo_type": "dataset", "revision": commit}
            found = {path: try_to_load_from_cache(repo.repo_id, path, **where) for path in files}
            lacking = [file for path, file in files.items() if not isinstance(found[path], str)]
            _check_room(repo.repo_id, lacking, Path(constants.HF_HUB_CACHE))
            return _fetch(repo, commit, files), commit
    with hub_errors(f"{doing}, of which the cache has no whole copy,", repo.token):
        try:
            folder = snapshot(repo, revision, patterns, local_files_only=True)
        except LocalEntryNotFoundError:
            raise reason from None
    if not isinstance(reason, OfflineModeIsEnabled):
        text = "the Hub cannot be asked for %s (%s): taken is the copy in the cache, which may be older"
        _LOG.warning(text, repo.repo_id, type(reason).__name__)
    return folder, None


def _list(repo: Repo, revision: str | None, tries: int = TRIES) -> tuple[str, Mapping[str, RepoSibling]]:
    """Returns the commit of a revision and its files that belong to the set, by path; refuses what is no set."""
    info: Any = repo.call(HfApi.repo_info, revision=revision, files_metadata=True, tries=tries)
    there = {entry.rfilename: entry for entry in info.siblings or ()}
    files = {path: entry for path, entry in there.items() if is_set_file(path)}
    if METADATA_FILE not in files:
        raise InputError(f"{repo.repo_id} is not a distilled set: it has no {METADATA_FILE}")
    for path, most in ((METADATA_FILE, MOST_BYTES), (CARD_FILE, LARGEST_CARD)):
        # Before it is downloaded, since it would stay in the client's cache.
        if path in files and (size := files[path].size or 0) > most:
            place = _so_on_the_hub(repo, str(info.sha))
            raise InputError(f"{path} must be of at most {most} bytes, got {size}. {place}")
    for path in there.keys() - files.keys():
        if is_set_file(path.replace("\\", "/")):
            text = f"has a file {path!r}, which Windows takes for one of the set: tell its owner to remove it"
            raise InputError(f"{repo.repo_id} {text}")
    return str(info.sha), files


def _check_room(repo_id: str, files: Iterable[RepoSibling], place: Path) -> None:
    needed = sum(file.size or 0 for file in files)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        text = f"{repo_id} takes {needed:,} bytes, and {place} has {free:,} left"
        raise InputError(f"{text}: make room, or choose another place")


def _fetch(repo: Repo, commit: str, files: Mapping[str, RepoSibling], local_dir: Path | None = None) -> Path:
    """Downloads files; returns the folder that holds them, as the Hub states them.

    The client does not notice damage of a download of the right length, or of a copy in its cache: such files are
    downloaded once more, and refused when they are damaged again.
    """
    folder = snapshot(repo, commit, files, local_dir=local_dir)
    damaged = _find_damaged(repo, commit, files, folder)
    if not damaged:
        return folder
    for path in damaged:
        _LOG.warning("%s of %s is damaged; fetching it once more", path, repo.repo_id)
        # Without symbolic links the client would keep what is there.
        (folder / path).unlink(missing_ok=True)
    snapshot(repo, commit, damaged, local_dir=local_dir, force_download=True)
    still = _find_damaged(repo, commit, files, folder)
    # Where none of the small files has git's name, and all came alike twice, the Hub names files otherwise than git.
    small = {path for path, file in files.items() if file.lfs is None}
    if still and not (still.keys() == small and still.items() <= damaged.items()):
        text = f"{', '.join(still)} of {repo.repo_id} came damaged, twice"
        raise InputError(f"{text}: try again, over another connection if it stays so")
    return folder


def _find_damaged(repo: Repo, commit: str, names: Collection[str], folder: Path) -> dict[str, str]:
    """Returns the digests of the files that differ from what the Hub states, by path; empty for what is missing."""
    found = repo.call(HfApi.verify_repo_checksums, revision=commit, local_dir=folder, tries=2)
    digests = dict.fromkeys(found.missing_paths, "") | {each["path"]: each["actual"] for each in found.mismatches}
    return {path: digests[path] for path in sorted(digests.keys() & names)}


def _read(read: Callable[[Path], Result], folder: Path, repo: Repo, commit: str) -> Result:
    try:
        return read(folder)
    except InputError as error:
        raise InputError(f"{error}. {_so_on_the_hub(repo, commit)}") from error


def _so_on_the_hub(repo: Repo, commit: str) -> str:
    return f"It is so on the Hub, in commit {commit[:8]} of {repo.repo_id}: choose another revision, or tell its owner"
