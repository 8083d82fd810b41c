"""Fetching a distilled set from the Hub: only its own files, checked, and never half of it."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from ssdd_hub import storage
from ssdd_hub.errors import InputError
from ssdd_hub.hub import ERRORS, HUB_ID, TIMEOUT, Token, explained, is_passing, patiently
from ssdd_hub.parcel import download

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)
_SHARD = "data/train-{0}-of-{0}.parquet".format("[0-9]" * 5)
# No `*`, which would also stand for `/` and `..`.
PATTERNS = [storage.CARD_FILE, storage.METADATA_FILE, storage.PREVIEW_FILE, storage.TRANSFORM_FILE, _SHARD]
_OWN_NAME = re.compile("|".join(pattern.replace(".", r"\.") for pattern in PATTERNS), re.ASCII)
_FEW_TRIES = 3  # where a cached copy may do instead


def is_set_file(path: str) -> bool:
    """Whether a path in a repository is that of a file of a distilled set."""
    return _OWN_NAME.fullmatch(path) is not None


def fetch_set(
    repo_id: str, read: Callable[[Path], Result], revision: str | None = None, token: Token = None
) -> Result:
    """Fetches a set into the client's cache and reads it; a damaged one is fetched once more.

    Args:
        repo_id: `owner/name`.
        read: Reads and checks a folder; raises `InputError` when it is damaged.
        revision: Branch, tag or sha; `main` by default.
        token: A Hub token; by default the one of the login.

    Returns:
        What `read` returned.

    Raises:
        InputError: There is no such repository or revision, it holds no set, the Hub and the cache both lack it, the
            disk is full, or the set is damaged, also when fetched again.
    """
    _check_id(repo_id)
    doing = f"fetching {repo_id} (revision {revision or 'main'})"
    with explained(doing, token):
        commit = _look(repo_id, revision, token, Path(constants.HF_HUB_CACHE))
        folder = _snapshot(repo_id, revision, token, local=commit is None)
        if commit is not None and folder.name != commit:
            # Refused in between, the client gives an older copy without a word.
            folder = _snapshot(repo_id, commit, token)
    try:
        return read(folder)
    except InputError:
        if commit is None:
            raise
    _LOG.warning("%s is damaged in the cache; fetching it once more", repo_id)
    with explained(doing, token):
        folder = _snapshot(repo_id, revision, token, force=True)
    try:
        return read(folder)
    except InputError as error:
        raise InputError(
            f"{error}. It came so twice: {repo_id} itself is damaged; choose another revision, or tell its owner"
        ) from error


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
        check: Called with the fetched files; raises `InputError` when they are damaged.
        revision: Branch, tag or sha; `main` by default.
        token: A Hub token; by default the one of the login.

    Returns:
        The sha of the commit.

    Raises:
        InputError: As for `fetch_set`; the folder is then what it was.
    """
    _check_id(repo_id)
    place = Path(folder).resolve()
    doing = f"pulling {repo_id} (revision {revision or 'main'}) to {folder}"
    with explained(doing, token), storage.replaced_folder(place) as new:
        commit, names = _list(repo_id, revision, token, place.parent)
        for attempt in (1, 2):
            download("dataset", repo_id, commit, names, new, token)
            try:
                check(new)
                break
            except InputError as error:
                if attempt == 2:
                    raise InputError(
                        f"{error}. It came so twice: {repo_id} itself is damaged, and {folder} is left as it was"
                    ) from error
                _empty(new)
        shutil.rmtree(new / ".cache", ignore_errors=True)
    return commit


def fetch_record(repo_id: str, revision: str | None = None, token: Token = None) -> Path:
    """Fetches the record of a set into the client's cache, and nothing else.

    Returns:
        The folder that holds it.

    Raises:
        InputError: There is no such repository or revision, or it holds no set.
    """
    _check_id(repo_id)

    def _fetch() -> str:
        return hf_hub_download(repo_id, storage.METADATA_FILE, repo_type="dataset", revision=revision, token=token)

    with explained(f"looking at {repo_id} (revision {revision or 'main'})", token):
        return Path(patiently(_fetch)).parent


def list_files(repo_id: str, revision: str, token: Token = None) -> list[str]:
    """Returns the paths of all files of a dataset repository, of the set or not.

    Raises:
        InputError: There is no such repository or revision, or the Hub cannot be reached.
    """
    with explained(f"looking at {repo_id} (revision {revision})", token):
        return patiently(lambda: HfApi(token=token).list_repo_files(repo_id, repo_type="dataset", revision=revision))


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _check_id(repo_id: str) -> None:
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"a set on the Hub is named owner/name, got {repo_id!r}; and there is no such folder here")


def _list(repo_id: str, revision: str | None, token: Token, place: Path, tries: int = 5) -> tuple[str, list[str]]:
    """Returns the commit of a revision and the files of the set in it; refuses what is no set, or does not fit."""
    api = HfApi(token=token)
    info = patiently(lambda: api.dataset_info(repo_id, revision=revision, timeout=TIMEOUT), tries)
    entries = patiently(
        lambda: list(api.list_repo_tree(repo_id, repo_type="dataset", revision=info.sha, recursive=True)), tries
    )
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile) and is_set_file(entry.path)}
    if storage.METADATA_FILE not in sizes:
        raise InputError(f"{repo_id} is not a distilled set: it has no {storage.METADATA_FILE}")
    while not place.exists():
        place = place.parent
    needed, free = sum(sizes.values()), shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{repo_id} takes {needed / 2**30:.2f} GiB, and {place} has {free / 2**30:.2f} GiB left: make room, or "
            "choose another place"
        )
    return str(info.sha), sorted(sizes)


def _look(repo_id: str, revision: str | None, token: Token, place: Path) -> str | None:
    """Returns the commit of a set on the Hub; None when the Hub cannot be asked, so that only the cache is left."""
    try:
        return _list(repo_id, revision, token, place, _FEW_TRIES)[0]
    except OfflineModeIsEnabled:
        return None
    except ERRORS as error:
        if not is_passing(error):
            raise
        _LOG.warning(
            "the Hub cannot be asked for %s (%s); looking for a copy in the cache, which may be older",
            repo_id,
            type(error).__name__,
        )
        return None


def _snapshot(repo_id: str, revision: str | None, token: Token, local: bool = False, force: bool = False) -> Path:
    def _fetch() -> str:
        return snapshot_download(
            repo_id,
            repo_type="dataset",
            revision=revision,
            token=token,
            allow_patterns=PATTERNS,
            local_files_only=local,
            force_download=force,
        )

    return Path(_fetch() if local else patiently(_fetch))
