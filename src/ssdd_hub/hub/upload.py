"""Publishing files on the Hub: looked at first, sent in one commit, fetched again and compared, then tagged."""

import re
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from ssdd_hub.errors import InputError
from ssdd_hub.hub.client import (
    ERRORS,
    TRIES,
    Token,
    explained,
    guarded,
    is_passing,
    patiently,
    saved_token,
    wait_after,
)
from ssdd_hub.hub.download import snapshot

_BEFOREHAND = {".gitattributes", "README.md"}  # what a repository may hold that was made on the Hub, and is empty
_SHORTEST_TOKEN = 8  # a shorter one could stand in any text
_STALE = {409, 412}  # what the Hub answers when the branch is not where the publisher saw it


def pack(sources: Mapping[str, Path | bytes]) -> dict[str, CommitOperationAdd]:
    """Returns what the client sends of files, by path in the repository."""
    # Resolved, since the client takes `..` and `~` out of a path otherwise than the system does.
    given = {path: source.resolve() if isinstance(source, Path) else source for path, source in sources.items()}
    return {path: CommitOperationAdd(path, source) for path, source in given.items()}


def digest_of(file: CommitOperationAdd) -> str:
    """Returns the sha256 of a packed file: the client reads it once, piece by piece, and remembers it."""
    return file.upload_info.sha256.hex()


@dataclass(frozen=True)
class Parcel:
    """What is to be published.

    Attributes:
        kind: `dataset` or `model`.
        files: What `pack` made, by path in the repository.
        owns: Whether a publication of this sort may write or remove a path.
        mark: The path by which a repository is known to hold such a publication, which a newer one may replace.
        check: Called with a folder of the files as they were fetched again; raises `InputError`.
        clashes: Whether a path of somebody else's in the repository would spoil the publication. The client leaves out
            of a commit what a `.gitignore` names, without a word.
        digests: The sha256 of each file when it was packed, with which all that comes back is compared.
    """

    kind: str
    files: Mapping[str, CommitOperationAdd]
    owns: Callable[[str], bool]
    mark: str
    check: Callable[[Path], None] = field(default=lambda folder: None)
    clashes: Callable[[str], bool] = field(default=lambda path: path == ".gitignore")
    digests: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", {path: digest_of(file) for path, file in self.files.items()})


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
        sizes = {path: file.upload_info.size for path, file in self.parcel.files.items()}
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


# Looking


def plan_upload(
    parcel: Parcel,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    token: Token = None,
) -> Plan:
    """Looks at the repository and says what publishing would change there.

    Args:
        parcel: The files.
        repo_id: `owner/name`.
        private: Whether a new repository is private. One that is there must be so already.
        revision: A branch, made if it is not there; `main` by default.
        create_pr: Offer the commit as a pull request against that branch.
        tag: A tag for the commit; one that is there already must be on these very files.
        token: A Hub token; by default the one of the login.

    Raises:
        InputError: The repository holds something else or is public, the revision is no branch,
            the tag is taken, or the Hub cannot be asked.
    """
    api, branch = HfApi(token=token), revision or "main"
    with explained(f"looking at {repo_id}", token):
        info = find_repo(api, parcel.kind, repo_id)
        refs = patiently(lambda: api.list_repo_refs(repo_id, repo_type=parcel.kind)) if info else None
        heads = {ref.name: ref.target_commit for ref in refs.branches} if refs else {}
        tags = {ref.name: ref.target_commit for ref in refs.tags} if refs else {}
        head = heads.get(branch, heads.get("main"))
        names = _list_names(api, parcel.kind, repo_id, head)
    if re.fullmatch("[0-9a-f]{40}", branch):
        raise InputError(f"a set is published on a branch, and {revision} is the sha of a commit: give a branch")
    if revision in tags:
        raise InputError(f"{revision} is a tag of {repo_id}, and a tag stays where it is: give a branch")
    if info is not None and private and not info.private:
        raise InputError(f"{repo_id} is there and public: make it private in its settings first, or choose another")
    _refuse_foreign(parcel, repo_id, names)
    _refuse_token(parcel, token)
    remove = tuple(name for name in names if parcel.owns(name) and name not in parcel.files)
    new_branch = branch != "main" and branch not in heads
    private = private if info is None else bool(info.private)
    exists, is_there = info is not None, tag in tags
    plan = Plan(parcel, repo_id, exists, private, branch, new_branch, head, remove, create_pr, tag, is_there)
    if tag in tags:
        with explained(f"looking at {repo_id}", token):
            if not _is_held(api, plan, tags[tag]):
                raise InputError(f"{repo_id} has a tag {tag} already, of commit {tags[tag][:8]}: choose another one")
    return plan


def find_repo(api: HfApi, kind: str, repo_id: str) -> Any:
    """Returns what the Hub tells of a repository; None when there is none that the token may see."""
    try:
        return patiently(lambda: api.repo_info(repo_id, repo_type=kind))
    except RepositoryNotFoundError:
        return None


def _list_names(api: HfApi, kind: str, repo_id: str, commit: str | None) -> list[str]:
    if not commit:
        return []
    return patiently(lambda: api.list_repo_files(repo_id, repo_type=kind, revision=commit))


def _refuse_foreign(parcel: Parcel, repo_id: str, names: list[str]) -> None:
    foreign = [name for name in names if name not in _BEFOREHAND]
    if foreign and parcel.mark not in names:
        raise InputError(
            f"{repo_id} holds something else ({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}), and no "
            f"{parcel.mark}: choose another name, or empty it on the Hub first"
        )
    clashing = [name for name in names if parcel.clashes(name)]
    if clashing:
        raise InputError(
            f"{repo_id} holds {', '.join(clashing[:3])}, which would be taken for a part of what is published, or "
            "keep parts of it from being sent: remove it on the Hub first"
        )


def _refuse_token(parcel: Parcel, token: Token) -> None:
    secret = (token if isinstance(token, str) else saved_token()) or ""
    for path, file in parcel.files.items():
        content = file.path_or_fileobj
        if len(secret) >= _SHORTEST_TOKEN and isinstance(content, bytes) and secret.encode() in content:
            raise InputError(f"{path} holds your access token: remove it from the record, and revoke the token")


# Sending


def upload(plan: Plan, message: str, token: Token = None) -> Published:
    """Carries out a plan: one commit, fetched again and compared, then tagged.

    Until the commit lands, nobody sees anything; stopped before, the same call can be made again.

    Raises:
        InputError: Somebody else published in the meantime, the Hub refuses or cannot be reached, or what it gives
            back is not what was sent.
    """
    api = HfApi(token=token)
    if not message.strip():
        raise InputError("a commit needs a title, and the message is empty: leave it out, or write one")
    with explained(f"publishing {plan.repo_id}", token):
        plan = _prepare(api, plan)
        commit, revision = _commit(api, plan, message)
    _verify(plan, commit, token)
    if plan.tag is not None and not plan.tag_exists:
        with explained(f"tagging {plan.repo_id} (the commit {commit[:8]} itself is published and verified)", token):
            _tag(api, plan, plan.tag, commit)
    prefix = "datasets/" if plan.parcel.kind == "dataset" else ""
    return Published(
        plan.repo_id, commit, plan.tag or revision, f"{api.endpoint}/{prefix}{plan.repo_id}/commit/{commit}"
    )


def _prepare(api: HfApi, plan: Plan) -> Plan:
    """Makes the repository and the branch where they are not there."""
    kind, repo_id = plan.parcel.kind, plan.repo_id
    if not plan.exists:
        patiently(lambda: api.create_repo(repo_id, repo_type=kind, private=plan.private, exist_ok=True))
        plan = replace(plan, head=_check_new(api, plan))
    if plan.new_branch and not plan.create_pr:
        patiently(lambda: api.create_branch(repo_id, branch=plan.branch, repo_type=kind, exist_ok=True))
    return plan


def _check_new(api: HfApi, plan: Plan) -> str | None:
    """Returns the first commit of a new repository, which the Hub makes; refuses one that somebody else made."""
    info = find_repo(api, plan.parcel.kind, plan.repo_id)
    if info is None:
        raise InputError(
            f"{plan.repo_id} is there, and this token may not see it: take a token that may, or choose another name"
        )
    head: str | None = info.sha
    names = _list_names(api, plan.parcel.kind, plan.repo_id, head)
    _refuse_foreign(plan.parcel, plan.repo_id, names)
    if plan.parcel.mark in names or (plan.private and not info.private):
        raise InputError(
            f"somebody else made {plan.repo_id} meanwhile. Nothing of yours was written; look at theirs, and publish "
            "again to replace it"
        )
    return head


def _commit(api: HfApi, plan: Plan, message: str) -> tuple[str, str]:
    """Returns the commit and the revision to load; sends again only what has surely not landed.

    The client does not try a commit again, and raises when only the answer was lost.
    """
    before = _pull_requests(api, plan) if plan.create_pr else {}
    # The same copies each time: what has been uploaded is not uploaded again.
    files = [copy(file) for _, file in sorted(plan.parcel.files.items())]
    where: dict[str, Any] = {
        "repo_type": plan.parcel.kind,
        "revision": None if plan.branch == "main" else plan.branch,
        "create_pr": plan.create_pr,
    }
    # Twice at most, since within it the client tries six times.
    patiently(lambda: api.preupload_lfs_files(plan.repo_id, files, free_memory=False, **where), tries=2)
    removals = [CommitOperationDelete(path) for path in plan.remove]
    for attempt in range(1, TRIES + 1):
        try:
            with guarded():
                done = api.create_commit(
                    plan.repo_id, [*files, *removals], commit_message=message, parent_commit=plan.head, **where
                )
            return done.oid, (done.pr_revision if plan.create_pr else None) or done.oid
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


def _find_landed(api: HfApi, plan: Plan, before: Mapping[str, str]) -> tuple[str, str] | None:
    """Returns the commit when it landed although its answer was lost; None when nothing has changed.

    Raises:
        InputError: The branch has moved, and not to this commit.
    """
    if plan.create_pr:
        new = {ref: commit for ref, commit in _pull_requests(api, plan).items() if before.get(ref) != commit}
        return next(((commit, ref) for ref, commit in new.items() if _is_held(api, plan, commit)), None)
    refs = patiently(lambda: api.list_repo_refs(plan.repo_id, repo_type=plan.parcel.kind))
    head = {ref.name: ref.target_commit for ref in refs.branches}.get(plan.branch)
    if head is None or head == plan.head:
        return None
    if _is_held(api, plan, head):
        return head, head
    raise InputError(
        f"somebody else wrote to {plan.repo_id} meanwhile: {plan.branch} was at {str(plan.head)[:8]} and is at "
        f"{head[:8]}. Nothing of yours was written; look at theirs, and publish again to replace it"
    )


def _pull_requests(api: HfApi, plan: Plan) -> dict[str, str]:
    refs = patiently(lambda: api.list_repo_refs(plan.repo_id, repo_type=plan.parcel.kind, include_pull_requests=True))
    return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}


def _tag(api: HfApi, plan: Plan, tag: str, commit: str) -> None:
    kind, repo_id = plan.parcel.kind, plan.repo_id
    patiently(lambda: api.create_tag(repo_id, tag=tag, revision=commit, repo_type=kind, exist_ok=True))
    refs = patiently(lambda: api.list_repo_refs(repo_id, repo_type=kind))
    target = next((ref.target_commit for ref in refs.tags if ref.name == tag), commit)
    if target != commit and not _is_held(api, plan, target):
        raise InputError(
            f"somebody else put the tag {tag} of {repo_id} on commit {target[:8]} meanwhile; yours is published and "
            f"verified as commit {commit[:8]}: publish again with another tag"
        )


# Comparing


def _is_held(api: HfApi, plan: Plan, commit: str) -> bool:
    """Whether a commit has the files of a plan, to the byte, and none of those that it removes.

    Large files are compared by the sha256 that the Hub states; the others are fetched.
    """
    digests, paths = plan.parcel.digests, [*plan.parcel.files, *plan.remove]
    found = patiently(lambda: api.get_paths_info(plan.repo_id, paths, repo_type=plan.parcel.kind, revision=commit))
    there = {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
    large = {path: entry.lfs.sha256 for path, entry in there.items() if entry.lfs is not None}
    if there.keys() != digests.keys() or any(digests[path] != sha256 for path, sha256 in large.items()):
        return False
    with tempfile.TemporaryDirectory(prefix="ssdd-hub-compare-") as scratch:
        return not _fetch_differing(plan, commit, there.keys() - large.keys(), Path(scratch), api.token)


def _verify(plan: Plan, commit: str, token: Token) -> None:
    """Fetches a commit again and compares; twice, since a download may be damaged too."""
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="ssdd-hub-verify-") as scratch:
            with explained(f"fetching {plan.repo_id} again to verify commit {commit[:8]}", token):
                wrong = _fetch_differing(plan, commit, plan.parcel.files, Path(scratch), token)
            if not wrong:
                return plan.parcel.check(Path(scratch))
    raise InputError(
        f"{plan.repo_id} is damaged at commit {commit[:8]}: {', '.join(wrong)} came back otherwise than sent, twice. "
        "It was not tagged: publish again, and tell the Hub's operators if it stays so"
    )


def _fetch_differing(plan: Plan, commit: str, names: Collection[str], folder: Path, token: Token) -> list[str]:
    """Fetches files of a commit into a folder; returns those that are not what was packed."""
    # With an empty cache, since the client would copy what it has in its own, damaged or not.
    where = {"local_dir": folder, "cache_dir": folder / ".cache" / "empty"}
    if names:
        patiently(lambda: snapshot(plan.repo_id, commit, list(names), token, plan.parcel.kind, **where))
    came = pack({name: folder / name for name in names if (folder / name).is_file()})
    return [name for name in names if name not in came or digest_of(came[name]) != plan.parcel.digests[name]]
