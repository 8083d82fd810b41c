"""Downloads distilled sets: only their own files, with the checksums that the Hub states, all of them or none."""

import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoSibling

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
    folder, commit = _to_cache("fetching", repo_id, revision, token, PATTERNS)
    if commit is None:
        return read(folder)
    result = _read(read, folder, repo_id, commit)
    with suppress(*ERRORS):
        # The client notes which commit the revision is: last, so that until then it knows the one before.
        patiently(lambda: snapshot(repo_id, revision, PATTERNS, token), tries=1)
    return result


def fetch_record(repo_id: str, revision: str | None = None, token: Token = None) -> Path:
    """Downloads the record of a set, and nothing else, into the client's cache; returns its folder there.

    Raises:
        InputError: As for `fetch_set`.
    """
    return _to_cache("looking at", repo_id, revision, token, [METADATA_FILE])[0]


def pull_set(
    repo_id: str, folder: str | Path, check: Callable[[Path], None], revision: str | None = None, token: Token = None
) -> str:
    """Downloads a set into a folder of its own, which appears complete and checked, or not at all.

    Args:
        repo_id: `owner/name`.
        folder: The place, free or taken by a distilled set, which is replaced.
        check: Called with the downloaded files; raises `InputError` when they are no sound set.
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


def list_files(repo_id: str, revision: str, token: Token = None) -> list[str]:
    """Returns the paths of all files of a dataset repository, those of the set and others."""
    with explained(f"looking at {repo_id} (revision {revision})", token):
        return patiently(lambda: HfApi(token=token).list_repo_files(repo_id, repo_type="dataset", revision=revision))


def snapshot(
    repo_id: str, revision: str | None, names: list[str], token: Token, kind: str = "dataset", **how: Any
) -> Path:
    """Downloads files of a revision into the client's cache or a `local_dir`; returns the folder."""
    return Path(
        snapshot_download(repo_id, repo_type=kind, revision=revision, allow_patterns=names, token=token, **how)
    )


def _check_id(repo_id: str) -> None:
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"a set on the Hub is named owner/name, got {repo_id!r}; and there is no such folder here")


def _to_cache(
    doing: str, repo_id: str, revision: str | None, token: Token, patterns: list[str]
) -> tuple[Path, str | None]:
    """Downloads files of a set into the cache; returns their folder, and the commit if the Hub could be reached."""
    _check_id(repo_id)
    doing = f"{doing} {repo_id} (revision {revision or 'main'})"
    with explained(doing, token):
        try:
            commit, files = _list(repo_id, revision, token, _FEW_TRIES)
        except ERRORS as error:
            if not isinstance(error, OfflineModeIsEnabled) and not is_passing(error):
                raise
            reason = error
        else:
            if patterns != PATTERNS:
                files = {path: files[path] for path in patterns}
            where = {"revision": commit, "repo_type": "dataset"}
            lacking = [path for path in files if not isinstance(try_to_load_from_cache(repo_id, path, **where), str)]
            _check_room(repo_id, [files[path] for path in lacking], Path(constants.HF_HUB_CACHE))
            return _fetch(repo_id, commit, files, token), commit
    with explained(f"{doing}, of which the cache has no whole copy,", token):
        try:
            folder = snapshot(repo_id, revision, patterns, token, local_files_only=True)
        except LocalEntryNotFoundError:
            raise reason from None
    if not isinstance(reason, OfflineModeIsEnabled):
        said = "the Hub cannot be asked for %s (%s): taken is the copy in the cache, which may be older"
        _LOG.warning(said, repo_id, type(reason).__name__)
    return folder, None


def _list(
    repo_id: str, revision: str | None, token: Token, tries: int = TRIES
) -> tuple[str, Mapping[str, RepoSibling]]:
    """Returns the commit of a revision and its files that belong to the set, by path; refuses what is no set."""
    info = patiently(lambda: HfApi(token=token).dataset_info(repo_id, revision=revision, files_metadata=True), tries)
    there = {entry.rfilename: entry for entry in info.siblings or ()}
    files = {path: entry for path, entry in there.items() if is_set_file(path)}
    if METADATA_FILE not in files:
        raise InputError(f"{repo_id} is not a distilled set: it has no {METADATA_FILE}")
    for path, most in ((METADATA_FILE, MOST_BYTES), (CARD_FILE, LARGEST_CARD)):
        # Before it is downloaded, since it would stay in the client's cache.
        if path in files and (size := files[path].size or 0) > most:
            place = _so_on_the_hub(repo_id, str(info.sha))
            raise InputError(f"{path} must be of at most {most} bytes, got {size}. {place}")
    for path in there.keys() - files.keys():
        if is_set_file(path.replace("\\", "/")):
            raise InputError(
                f"{repo_id} has a file {path!r}, which Windows takes for one of the set: tell its owner to remove it"
            )
    return str(info.sha), files


def _check_room(repo_id: str, files: Iterable[RepoSibling], place: Path) -> None:
    needed = sum(file.size or 0 for file in files)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{repo_id} takes {needed:,} bytes, and {place} has {free:,} left: make room, or choose another place"
        )


def _fetch(
    repo_id: str, commit: str, files: Mapping[str, RepoSibling], token: Token, local_dir: Path | None = None
) -> Path:
    """Downloads files; returns the folder that holds them, as the Hub states them.

    The client does not notice damage of a download of the right length, or of a copy in its cache: such files are
    downloaded once more, and refused when they are damaged again.
    """
    folder = patiently(lambda: snapshot(repo_id, commit, sorted(files), token, local_dir=local_dir))
    damaged = _find_damaged(repo_id, commit, files, folder, token)
    if not damaged:
        return folder
    for path in damaged:
        _LOG.warning("%s of %s is damaged; fetching it once more", path, repo_id)
        # Without symbolic links the client would keep what is there.
        (folder / path).unlink(missing_ok=True)
    patiently(lambda: snapshot(repo_id, commit, sorted(damaged), token, local_dir=local_dir, force_download=True))
    still = _find_damaged(repo_id, commit, files, folder, token)
    # Where none of the small files has git's name, and all came alike twice, the Hub names files otherwise than git.
    small = {path for path, file in files.items() if file.lfs is None}
    if still and not (still.keys() == small and still.items() <= damaged.items()):
        raise InputError(
            f"{', '.join(still)} of {repo_id} came damaged, twice: try again, over another connection if it stays so"
        )
    return folder


def _find_damaged(repo_id: str, commit: str, names: Collection[str], folder: Path, token: Token) -> dict[str, str]:
    """Returns the digests of the files that differ from what the Hub states, by path; empty for what is missing."""
    api = HfApi(token=token)
    found = patiently(
        lambda: api.verify_repo_checksums(repo_id, repo_type="dataset", revision=commit, local_dir=folder)
    )
    digests = dict.fromkeys(found.missing_paths, "") | {each["path"]: each["actual"] for each in found.mismatches}
    return {path: digests[path] for path in sorted(digests.keys() & names)}


def _read(read: Callable[[Path], Result], folder: Path, repo_id: str, commit: str) -> Result:
    try:
        return read(folder)
    except InputError as error:
        raise InputError(f"{error}. {_so_on_the_hub(repo_id, commit)}") from error


def _so_on_the_hub(repo_id: str, commit: str) -> str:
    return f"It is so on the Hub, in commit {commit[:8]} of {repo_id}: choose another revision, or tell its owner"
