"""Publishing files on the Hub: looked at first, sent in one commit, fetched again and compared, then tagged."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from ssdd_hub.errors import InputError
from ssdd_hub.hub import ERRORS, TIMEOUT, TRIES, Token, explained, is_passing, patiently, wait_after

_STALE = {409, 412}  # what the Hub answers when the branch is not where the publisher saw it
_HUBS_OWN = ".gitattributes"
_PART = 2**20  # bytes read at once


@dataclass(frozen=True)
class Parcel:
    """What is to be published.

    Attributes:
        kind: `dataset` or `model`.
        files: Contents, or where they are, by path in the repository.
        owns: Whether a publication of this sort may write or remove a path.
        mark: The path by which a repository is known to hold such a publication, which a newer one may replace.
        check: Called with a folder of the files as they were fetched again; raises `InputError`.
    """

    kind: str
    files: Mapping[str, Path | bytes]
    owns: Callable[[str], bool]
    mark: str
    check: Callable[[Path], None] = field(default=lambda folder: None)

    def digests(self) -> dict[str, tuple[int, str]]:
        """Returns size and sha256 of each file."""
        return {path: _digest(content, "sha256") for path, content in self.files.items()}


@dataclass(frozen=True)
class Plan:
    """What publishing would change; nothing has been written yet.

    Attributes:
        parcel: The files.
        repo_id: `owner/name`.
        exists: Whether the repository is there.
        private: Whether it is, or will be, private.
        branch: Where the commit goes.
        new_branch: Whether that branch is made.
        head: The commit that the branch is at; None where there is none yet.
        remove: Files of an earlier publication that are no longer part of it.
        create_pr: Whether the commit is offered as a pull request.
        tag: Name of the tag, or None.
        tag_exists: Whether it is there already.
    """

    parcel: Parcel
    repo_id: str
    exists: bool
    private: bool
    branch: str
    new_branch: bool
    head: str | None
    remove: tuple[str, ...]
    create_pr: bool
    tag: str | None
    tag_exists: bool = False

    def describe(self) -> str:
        """Returns what will be sent and where, for a person to read."""
        sizes = {path: size for path, (size, _) in self.parcel.digests().items()}
        width = max(map(len, [*sizes, *self.remove]))
        place = f"{'private' if self.private else 'public'} {self.parcel.kind} {self.repo_id}"
        how = "a pull request" if self.create_pr else f"branch {self.branch}{' (new)' if self.new_branch else ''}"
        lines = [f"to the {'' if self.exists else 'new '}{place}, {how}" + (f", tag {self.tag}" if self.tag else "")]
        lines += [f"  {path:<{width}}  {size:>13,} bytes" for path, size in sizes.items()]
        lines += [f"  {path:<{width}}  removed" for path in self.remove]
        return "\n".join([*lines, f"  {'in all':<{width}}  {sum(sizes.values()):>13,} bytes"])


@dataclass(frozen=True)
class Published:
    """What was published.

    Attributes:
        repo_id: `owner/name`.
        commit: The sha of the commit, which holds the files for good.
        revision: What to load: the tag, the pull request, or else the commit.
        url: Where to look at it.
    """

    repo_id: str
    commit: str
    revision: str
    url: str


def plan_upload(
    parcel: Parcel,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    keep_tag: bool = False,
    token: Token = None,
) -> Plan:
    """Looks at the repository and says what publishing would change there.

    Args:
        parcel: The files.
        repo_id: `owner/name`.
        private: Whether a new repository is private. One that is there must be so already.
        revision: A branch, made if it is not there; `main` by default.
        create_pr: Offer the commit as a pull request against that branch.
        tag: A tag for the commit.
        keep_tag: Whether a tag of this name that is there already may stay where it is.
        token: A Hub token; by default the one of the login.

    Raises:
        InputError: The repository holds something else or is public, the revision is no branch,
            the tag is taken, or the Hub cannot be asked.
    """
    api, branch = HfApi(token=token), revision or "main"
    with explained(f"looking at {repo_id}", token):
        info = _info(api, parcel.kind, repo_id)
        refs = patiently(lambda: api.list_repo_refs(repo_id, repo_type=parcel.kind)) if info else None
        heads = {ref.name: ref.target_commit for ref in refs.branches} if refs else {}
        tags = {ref.name: ref.target_commit for ref in refs.tags} if refs else {}
        head = heads.get(branch, heads.get("main"))
        names = _names(api, parcel.kind, repo_id, head) if head else []
    if revision in tags:
        raise InputError(f"{revision} is a tag of {repo_id}, and a tag stays where it is: give a branch")
    if info is not None and private and not info.private:
        raise InputError(f"{repo_id} is there and public: make it private in its settings first, or choose another")
    _refuse_foreign(parcel, repo_id, names)
    remove = tuple(name for name in names if parcel.owns(name) and name not in parcel.files)
    new_branch = branch != "main" and branch not in heads
    private = private if info is None else bool(info.private)
    exists, taken = info is not None, tag in tags
    plan = Plan(parcel, repo_id, exists, private, branch, new_branch, head, remove, create_pr, tag, taken)
    if tag in tags and not keep_tag:
        with explained(f"looking at {repo_id}", token):
            same = _holds(api, plan, tags[tag])
        if not same:
            raise InputError(f"{repo_id} has a tag {tag} already, of commit {tags[tag][:8]}: choose another one")
    return plan


def _info(api: HfApi, kind: str, repo_id: str) -> Any:
    try:
        return patiently(lambda: api.repo_info(repo_id, repo_type=kind, timeout=TIMEOUT))
    except RepositoryNotFoundError:
        return None


def _names(api: HfApi, kind: str, repo_id: str, revision: str) -> list[str]:
    return patiently(lambda: api.list_repo_files(repo_id, repo_type=kind, revision=revision))


def _refuse_foreign(parcel: Parcel, repo_id: str, names: list[str]) -> None:
    foreign = [name for name in names if name != _HUBS_OWN and not parcel.owns(name)]
    if foreign and parcel.mark not in names:
        raise InputError(
            f"{repo_id} holds something else ({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}), and no "
            f"{parcel.mark}: choose another name, or empty it on the Hub first"
        )


def upload(plan: Plan, message: str, token: Token = None) -> Published:
    """Carries out a plan: one commit, fetched again and compared, then tagged.

    Until the commit lands, nobody sees anything; stopped before, the same call can be made again.

    Raises:
        InputError: Somebody else published in the meantime, the Hub refuses or cannot be reached, or what it gives
            back is not what was sent.
    """
    api, parcel = HfApi(token=token), plan.parcel
    with explained(f"publishing {plan.repo_id}", token):
        plan = _prepare(api, plan)
        commit, revision, url = _commit(api, plan, message)
    _verify(plan, commit, token)
    if plan.tag is not None and not plan.tag_exists:
        with explained(f"tagging {plan.repo_id} (the commit {commit[:8]} itself is published and verified)", token):
            patiently(
                lambda: api.create_tag(
                    plan.repo_id, tag=plan.tag or "", revision=commit, repo_type=parcel.kind, exist_ok=True
                )
            )
    return Published(plan.repo_id, commit, plan.tag or revision, url)


def _prepare(api: HfApi, plan: Plan) -> Plan:
    """Makes the repository and the branch where they are not there."""
    kind, branch = plan.parcel.kind, plan.branch
    head = plan.head
    if not plan.exists:
        patiently(lambda: api.create_repo(plan.repo_id, repo_type=kind, private=plan.private, exist_ok=True))
        # A new repository has a first commit, by the Hub.
        head = _info(api, kind, plan.repo_id).sha
    if plan.new_branch and not plan.create_pr:
        patiently(lambda: api.create_branch(plan.repo_id, branch=branch, repo_type=kind, exist_ok=True))
    return replace(plan, head=head)


def _commit(api: HfApi, plan: Plan, message: str) -> tuple[str, str, str]:
    """Returns the commit, the revision to load, and an address; sends again only what has surely not landed."""
    kind = plan.parcel.kind
    before = _pull_requests(api, plan) if plan.create_pr else {}
    # The same objects each time: what has been uploaded is not uploaded again.
    operations = [CommitOperationAdd(path, content) for path, content in sorted(plan.parcel.files.items())]
    removals = [CommitOperationDelete(path) for path in plan.remove]
    for attempt in range(1, TRIES + 1):
        try:
            done = api.create_commit(
                plan.repo_id,
                [*operations, *removals],
                commit_message=message,
                repo_type=kind,
                revision=None if plan.branch == "main" else plan.branch,
                create_pr=plan.create_pr,
                parent_commit=plan.head,
            )
            return done.oid, (done.pr_revision if plan.create_pr else None) or done.oid, str(done.commit_url)
        except ERRORS as error:
            stale = isinstance(error, HfHubHTTPError) and error.response.status_code in _STALE
            if not stale and not is_passing(error):
                raise
            landed = _find_landed(api, plan, before)
            if landed is not None:
                return landed
            if attempt == TRIES or stale:
                raise
            time.sleep(wait_after(error, attempt))
    raise AssertionError("unreachable")


def _find_landed(api: HfApi, plan: Plan, before: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Returns the commit when it landed although its answer was lost; None when nothing has changed.

    Raises:
        InputError: The branch has moved, and not to this commit.
    """
    if plan.create_pr:
        new = {ref: commit for ref, commit in _pull_requests(api, plan).items() if before.get(ref) != commit}
        for ref, commit in new.items():
            if _holds(api, plan, commit):
                return commit, ref, _url(api, plan, commit)
        return None
    refs = patiently(lambda: api.list_repo_refs(plan.repo_id, repo_type=plan.parcel.kind))
    head = {ref.name: ref.target_commit for ref in refs.branches}.get(plan.branch)
    if head is None or head == plan.head:
        return None
    if _holds(api, plan, head):
        return head, head, _url(api, plan, head)
    raise InputError(
        f"somebody else wrote to {plan.repo_id} meanwhile: {plan.branch} was at {str(plan.head)[:8]} and is at "
        f"{head[:8]}. Nothing of yours was written; look at theirs, and publish again to replace it"
    )


def _pull_requests(api: HfApi, plan: Plan) -> dict[str, str]:
    refs = patiently(lambda: api.list_repo_refs(plan.repo_id, repo_type=plan.parcel.kind, include_pull_requests=True))
    return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}


def _holds(api: HfApi, plan: Plan, commit: str) -> bool:
    """Whether a commit has exactly the files of the plan, and none that it removes."""
    paths = [*plan.parcel.files, *plan.remove]
    found = patiently(lambda: api.get_paths_info(plan.repo_id, paths, repo_type=plan.parcel.kind, revision=commit))
    there = {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
    return there.keys() == plan.parcel.files.keys() and all(
        _digest(plan.parcel.files[path], "git")[1] == entry.blob_id
        if entry.lfs is None
        else _digest(plan.parcel.files[path], "sha256") == (entry.lfs.size, entry.lfs.sha256)
        for path, entry in there.items()
    )


def _url(api: HfApi, plan: Plan, commit: str) -> str:
    prefix = "datasets/" if plan.parcel.kind == "dataset" else ""
    return f"{api.endpoint}/{prefix}{plan.repo_id}/commit/{commit}"


def _digest(content: Path | bytes, how: str) -> tuple[int, str]:
    """Returns the size and the sha256 of a file, or the sha1 by which git names it."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    digest = hashlib.sha256() if how == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return size, digest.hexdigest()
    with content.open("rb") as file:
        for part in iter(partial(file.read, _PART), b""):
            digest.update(part)
    return size, digest.hexdigest()


def _verify(plan: Plan, commit: str, token: Token) -> None:
    """Fetches the commit again, past every cache, and compares; twice, since a download may be damaged too."""
    sent = plan.parcel.digests()
    for attempt in (1, 2):
        with tempfile.TemporaryDirectory(prefix="ssdd-hub-verify-") as scratch:
            with explained(f"fetching {plan.repo_id} again to verify commit {commit[:8]}", token):
                download(plan.parcel.kind, plan.repo_id, commit, list(sent), Path(scratch), token)
            wrong = [name for name, facts in sent.items() if _digest(Path(scratch, name), "sha256") != facts]
            if not wrong:
                return plan.parcel.check(Path(scratch))
        if attempt == 2:
            raise InputError(
                f"{plan.repo_id} is damaged at commit {commit[:8]}: {', '.join(wrong)} came back otherwise than sent, "
                "twice. It was not tagged: publish again, and tell the Hub's operators if it stays so"
            )


def download(kind: str, repo_id: str, commit: str, names: list[str], folder: Path, token: Token) -> None:
    """Fetches files of a commit into a folder, and nothing else.

    Args:
        kind: `dataset` or `model`.
        repo_id: `owner/name`.
        commit: Its sha.
        names: Their paths in the repository, plain names and not patterns.
        folder: Where they go.
        token: A Hub token; by default the one of the login.

    Raises:
        Exception: What the client raises.
    """

    def _fetch() -> None:
        snapshot_download(
            repo_id, repo_type=kind, revision=commit, local_dir=folder, allow_patterns=names, token=token
        )

    patiently(_fetch)
