"""Fetching a distilled set from the Hub: only its own files, compared with what the Hub states of them, never half."""

import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ssdd_hub.errors import InputError
from ssdd_hub.files import replaced_folder
from ssdd_hub.hub.client import ERRORS, TRIES, Token, explained, is_passing, patiently
from ssdd_hub.record import CARD_FILE, LARGEST_CARD, METADATA_FILE, MOST_BYTES, PREVIEW_FILE, TRANSFORM_FILE
from ssdd_hub.text import HUB_ID

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)
_SHARD = "data/train-{0}-of-{0}.parquet".format("[0-9]" * 5)
# No `*`, which would also stand for `/` and `..`.
PATTERNS = [CARD_FILE, METADATA_FILE, PREVIEW_FILE, TRANSFORM_FILE, _SHARD]
_OWN_NAME = re.compile("|".join(pattern.replace(".", r"\.") for pattern in PATTERNS), re.ASCII)
_FEW_TRIES = 3  # where a cached copy may do instead


def is_set_file(path: str) -> bool:
    """Whether a path in a repository is that of a file of a distilled set."""
    return _OWN_NAME.fullmatch(path) is not None


def clashes_with_set(path: str) -> bool:
    """Whether a path of somebody else's spoils a set: it is loaded as a part of it, or keeps parts from being sent."""
    return path == ".gitignore" or (path.startswith("data/train-") and not is_set_file(path))


def fetch_set(
    repo_id: str, read: Callable[[Path], Result], revision: str | None = None, token: Token = None
) -> Result:
    """Fetches a set into the client's cache and reads it; a file that is damaged there is fetched once more.

    Args:
        repo_id: `owner/name`.
        read: Reads and checks a folder; raises `InputError` when it is no sound set.
        revision: Branch, tag or sha; `main` by default.
        token: A Hub token; by default the one of the login.

    Returns:
        What `read` returned.

    Raises:
        InputError: There is no such repository or revision, it holds no set, the Hub and the cache both lack it, the
            disk is full, the set comes damaged twice, or `read` refuses it.
    """
    _check_id(repo_id)
    doing = f"fetching {repo_id} (revision {revision or 'main'})"
    found = _look(doing, repo_id, PATTERNS, revision, token)
    if isinstance(found, Path):
        return read(found)
    commit, files = found
    with explained(doing, token):
        lacking = [path for path in files if not _is_cached(repo_id, commit, path)]
        _check_room(repo_id, [files[path] for path in lacking], Path(constants.HF_HUB_CACHE))
        folder = _fetch(repo_id, commit, files, token)
    result = _read(read, folder, repo_id, commit)
    with suppress(*ERRORS):
        # Lets the client note which commit the revision is: last, so that until then it knows the one before.
        patiently(lambda: snapshot(repo_id, revision, PATTERNS, token), tries=1)
    return result


def pull_set(
    repo_id: str,
    folder: str | Path,
    check: Callable[[Path], None],
    revision: str | None = None,
    token: Token = None,
) -> str:
    """Fetches a set into a folder of its own, which appears whole and checked, or not at all.

    Args:
        repo_id: `owner/name`.
        folder: The place, free or taken by a distilled set, which is replaced.
        check: Called with the fetched files; raises `InputError` when they are no sound set.
        revision: Branch, tag or sha; `main` by default.
        token: A Hub token; by default the one of the login.

    Returns:
        The sha of the commit.

    Raises:
        InputError: As for `fetch_set`, or the place is taken by something else; it is then what it was.
    """
    _check_id(repo_id)
    place = Path(folder).resolve()
    doing = f"pulling {repo_id} (revision {revision or 'main'}) to {folder}"
    with explained(doing, token), replaced_folder(place) as new:
        commit, files = _list(repo_id, revision, token)
        _check_room(repo_id, files.values(), place)
        _fetch(repo_id, commit, files, token, local_dir=new)
        shutil.rmtree(new / ".cache", ignore_errors=True)
        _read(check, new, repo_id, commit)
    return commit


def fetch_record(repo_id: str, revision: str | None = None, token: Token = None) -> Path:
    """Fetches the record of a set into the client's cache, and nothing else.

    Returns:
        The folder that holds it.

    Raises:
        InputError: There is no such repository or revision, it holds no set, or the Hub and the cache both lack it.
    """
    _check_id(repo_id)
    doing = f"looking at {repo_id} (revision {revision or 'main'})"
    found = _look(doing, repo_id, [METADATA_FILE], revision, token)
    if isinstance(found, Path):
        return found
    commit, files = found
    with explained(doing, token):
        return _fetch(repo_id, commit, {METADATA_FILE: files[METADATA_FILE]}, token)


def list_files(repo_id: str, revision: str, token: Token = None) -> list[str]:
    """Returns the paths of all files of a dataset repository, of the set or not.

    Raises:
        InputError: There is no such repository or revision, or the Hub cannot be reached.
    """
    with explained(f"looking at {repo_id} (revision {revision})", token):
        return patiently(lambda: HfApi(token=token).list_repo_files(repo_id, repo_type="dataset", revision=revision))


def _check_id(repo_id: str) -> None:
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"a set on the Hub is named owner/name, got {repo_id!r}; and there is no such folder here")


def _list(repo_id: str, revision: str | None, token: Token, tries: int = TRIES) -> tuple[str, Mapping[str, RepoFile]]:
    """Returns the commit of a revision and the files of the set in it, by path; refuses what is no set."""
    api = HfApi(token=token)
    info = patiently(lambda: api.dataset_info(repo_id, revision=revision), tries)
    entries = patiently(
        lambda: list(api.list_repo_tree(repo_id, repo_type="dataset", revision=info.sha, recursive=True)), tries
    )
    there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    files = {path: entry for path, entry in there.items() if is_set_file(path)}
    if METADATA_FILE not in files:
        raise InputError(f"{repo_id} is not a distilled set: it has no {METADATA_FILE}")
    for path, most in ((METADATA_FILE, MOST_BYTES), (CARD_FILE, LARGEST_CARD)):
        # Before it is fetched, since it would stay in the client's cache.
        if path in files and files[path].size > most:
            place = _so_on_the_hub(repo_id, str(info.sha))
            raise InputError(f"{path} must be of at most {most} bytes, got {files[path].size}. {place}")
    for path in there.keys() - files.keys():
        if is_set_file(path.replace("\\", "/")):
            raise InputError(
                f"{repo_id} has a file {path!r}, which Windows takes for one of the set: tell its owner to remove it"
            )
    return str(info.sha), files


def _look(
    doing: str, repo_id: str, patterns: list[str], revision: str | None, token: Token
) -> tuple[str, Mapping[str, RepoFile]] | Path:
    """Returns what `_list` does; when the Hub cannot be asked, the copy in the cache."""
    with explained(doing, token):
        try:
            return _list(repo_id, revision, token, _FEW_TRIES)
        except ERRORS as error:
            if not isinstance(error, OfflineModeIsEnabled) and not is_passing(error):
                raise
            reason = error
    with explained(f"{doing}, of which the cache has no whole copy,", token):
        try:
            folder = snapshot(repo_id, revision, patterns, token, local_files_only=True)
        except LocalEntryNotFoundError:
            raise reason from None
    if not isinstance(reason, OfflineModeIsEnabled):
        _LOG.warning(
            "the Hub cannot be asked for %s (%s): taken is the copy in the cache, which may be older",
            repo_id,
            type(reason).__name__,
        )
    return folder


def _is_cached(repo_id: str, commit: str, path: str) -> bool:
    return isinstance(try_to_load_from_cache(repo_id, path, revision=commit, repo_type="dataset"), str)


def _check_room(repo_id: str, files: Iterable[RepoFile], place: Path) -> None:
    needed = sum(file.size for file in files)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{repo_id} takes {needed:,} bytes, and {place} has {free:,} left: make room, or choose another place"
        )


def snapshot(
    repo_id: str, revision: str | None, names: list[str], token: Token, kind: str = "dataset", **where: Any
) -> Path:
    """Fetches files of a revision, and nothing else, into the client's cache or a `local_dir`; returns the folder.

    Raises:
        Exception: What the client raises.
    """
    return Path(
        snapshot_download(repo_id, repo_type=kind, revision=revision, allow_patterns=names, token=token, **where)
    )


def _fetch(
    repo_id: str, commit: str, files: Mapping[str, RepoFile], token: Token, local_dir: Path | None = None
) -> Path:
    """Fetches files; returns the folder that holds them, as the Hub states them.

    The client does not notice a download of the right length that is damaged, nor a damaged copy in its cache: such
    files are fetched once more.

    Raises:
        InputError: One is damaged again.
    """
    folder = patiently(lambda: snapshot(repo_id, commit, sorted(files), token, local_dir=local_dir))
    first = _find_damaged(files, folder)
    for path in first:
        _LOG.warning("%s of %s is damaged; fetching it once more", path, repo_id)
        # Without symbolic links the client would keep what is there.
        (folder / path).unlink(missing_ok=True)
        again = partial(hf_hub_download, repo_id, path, repo_type="dataset", revision=commit, token=token)
        patiently(partial(again, local_dir=local_dir, force_download=True))
    still = _find_damaged(files, folder) if first else {}
    # A Hub that names not one of its small files as git does has other names for them, and they tell nothing.
    small = {path for path, file in files.items() if file.lfs is None}
    is_named_otherwise = still.keys() == small and all(found and found == first[path] for path, found in still.items())
    if still and not is_named_otherwise:
        raise InputError(
            f"{', '.join(still)} of {repo_id} came damaged, twice: try again, over another connection if it stays so"
        )
    return folder


def _find_damaged(files: Mapping[str, RepoFile], folder: Path) -> dict[str, str]:
    """Returns the files that are not what the Hub states, and what they are: a digest, empty for what is missing."""
    # Not `HfApi.verify_repo_checksums`, which would ask for all files again.
    found = {path: _digest(folder / path, file.lfs is not None) for path, file in sorted(files.items())}
    stated = {path: file.blob_id if file.lfs is None else file.lfs.sha256 for path, file in files.items()}
    return {path: digest for path, digest in found.items() if digest != stated[path]}


def _digest(path: Path, is_large: bool) -> str:
    """Returns the sha256 of a large file, and of another what git names it by."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return sha_fileobj(file).hex() if is_large else git_hash(file.read())


def _read(read: Callable[[Path], Result], folder: Path, repo_id: str, commit: str) -> Result:
    try:
        return read(folder)
    except InputError as error:
        raise InputError(f"{error}. {_so_on_the_hub(repo_id, commit)}") from error


def _so_on_the_hub(repo_id: str, commit: str) -> str:
    return f"It is so on the Hub, in commit {commit[:8]} of {repo_id}: choose another revision, or tell its owner"
