"""Uploads files to the Hub in one commit, downloads them again to compare them, then tags the commit."""

import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from ssdd_hub.errors import InputError
from ssdd_hub.hub.client import Repo, Token, hub_errors, saved_token, with_retries
from ssdd_hub.hub.download import snapshot
from ssdd_hub.text import refuse_tokens

_BEFOREHAND = {".gitattributes", "README.md"}  # what a repository may hold that was made on the Hub, and is empty
_NOTHING = "Nothing of yours was written; look at theirs, and publish again to replace it"


def pack(sources: Mapping[str, Path | bytes]) -> dict[str, CommitOperationAdd]:
    """Returns what the client sends of files, by path in the repository."""
    # Resolved, since the client takes `..` and `~` out of a path otherwise than the system does.
    given = {path: source.resolve() if isinstance(source, Path) else source for path, source in sources.items()}
    files = {path: CommitOperationAdd(path, source) for path, source in given.items()}
    for file in files.values():
        # Remembered from now on, so that what comes back is compared with the files of this moment.
        digest_of(file)
    return files


def digest_of(file: CommitOperationAdd) -> str:
    """Returns the sha256 of a packed file, which the client reads once, piece by piece."""
    return file.upload_info.sha256.hex()


@dataclass(frozen=True)
class Parcel:
    """Files to publish, and what a repository may hold beside them."""

    kind: str  # `dataset` or `model`
    files: Mapping[str, CommitOperationAdd]  # by path in the repository, from `pack`
    owns: Callable[[str], bool]  # whether a path is one of such a publication, to be written or removed
    mark: str  # the path by which a repository is known to hold such a publication, which a newer one may replace
    # Called with a folder of the files as they were downloaded again; raises `InputError`.
    check: Callable[[Path], None] = lambda folder: None
    # Whether a foreign path would spoil the publication; the client silently leaves out what a `.gitignore` names.
    clashes: Callable[[str], bool] = lambda path: path == ".gitignore"


@dataclass(frozen=True)
class Plan:
    """What publishing would change; nothing has been written yet."""

    parcel: Parcel
    repo_id: str  # `owner/name`
    private: bool  # whether the repository is, or will be
    branch: str
    head: str | None  # the commit that the branch is at, or starts at; None where there is no repository yet
    new_branch: bool
    remove: tuple[str, ...]  # files of an earlier publication that are no longer part of it
    create_pr: bool  # whether the commit is offered as a pull request
    tag: str | None

    def describe(self) -> str:
        """Returns what will be sent and where, for a person to read."""
        sizes = {path: file.upload_info.size for path, file in self.parcel.files.items()}
        width = max(map(len, [*sizes, *self.remove]))
        place = f"{'private' if self.private else 'public'} {self.parcel.kind} {self.repo_id}"
        how = "a pull request" if self.create_pr else f"branch {self.branch}{' (new)' if self.new_branch else ''}"
        lines = [f"to the {'' if self.head else 'new '}{place}, {how}" + (f", tag {self.tag}" if self.tag else "")]
        lines += [f"  {path:<{width}}  {size:>13,} bytes" for path, size in sizes.items()]
        lines += [f"  {path:<{width}}  removed" for path in self.remove]
        return "\n".join([*lines, f"  {'in all':<{width}}  {sum(sizes.values()):>13,} bytes"])


@dataclass(frozen=True)
class Published:
    """What was published: the commit, the revision to load (tag, pull request, or the commit), and its web address."""

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
    token: Token = None,
) -> Plan:
    """Returns what publishing would change in a repository, `owner/name`; `sets.publish.plan_set` has the arguments.

    Raises:
        InputError: The repository holds something else or is public, the revision is no branch, the tag is taken, a
            file, a name or the tag holds a token, or the Hub cannot be reached.
    """
    _refuse_tokens(token, {"the name of the repository": repo_id, "the branch": revision, "the tag": tag})
    texts = ((path, file.path_or_fileobj) for path, file in parcel.files.items())
    _refuse_tokens(token, {path: str(text, errors="replace") for path, text in texts if isinstance(text, bytes)})
    _refuse_tokens(token, {"the name of a file": "\n".join(parcel.files)})
    repo, branch = Repo(repo_id, token, parcel.kind), revision or "main"
    with hub_errors(f"looking at {repo_id}", token):
        info = find_repo(repo)
        refs = _list_refs(repo) if info else {}
        own_head = refs.get(f"refs/heads/{branch}")
        head = own_head or refs.get("refs/heads/main")
        names = repo.call(HfApi.list_repo_files, revision=head, tries=2) if head else []
    if re.fullmatch("[0-9a-f]{40}", branch):
        raise InputError(f"a set is published on a branch, and {revision} is the sha of a commit: give a branch")
    if f"refs/tags/{branch}" in refs:
        raise InputError(f"{revision} is a tag of {repo_id}, and a tag stays where it is: give a branch")
    if info is not None and private and not info.private:
        raise InputError(f"{repo_id} is there and public: make it private in its settings first, or choose another")
    _refuse_foreign(parcel, repo_id, names)
    remove = tuple(name for name in names if parcel.owns(name) and name not in parcel.files)
    is_new = branch != "main" and own_head is None
    private = private if info is None else bool(info.private)
    plan = Plan(parcel, repo_id, private, branch, head, is_new, remove, create_pr, tag)
    with hub_errors(f"looking at {repo_id}", token):
        tagged = refs.get(f"refs/tags/{tag}")
        if tagged and not _is_held(repo, plan, tagged):
            raise InputError(f"{repo_id} has a tag {tag} already, of commit {tagged[:8]}: choose another one")
    return plan


def _refuse_tokens(token: Token, texts: Mapping[str, str | None]) -> None:
    refuse_tokens(texts, (token if isinstance(token, str) else None, saved_token()))


def find_repo(repo: Repo) -> Any:
    """Returns what the Hub states of a repository; None when there is none that the token may see."""
    try:
        return repo.call(HfApi.repo_info)
    except RepositoryNotFoundError:
        return None


def _list_refs(repo: Repo) -> dict[str, str]:
    """Returns the commits of branches, tags and pull requests by full names, such as `refs/heads/main`."""
    refs = repo.call(HfApi.list_repo_refs, include_pull_requests=True)
    return {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags, *(refs.pull_requests or [])]}


def _refuse_foreign(parcel: Parcel, repo_id: str, names: list[str]) -> None:
    foreign = [name for name in names if name not in _BEFOREHAND]
    if foreign and parcel.mark not in names:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        advice = "choose another name, or empty it on the Hub first"
        raise InputError(f"{repo_id} holds something else ({shown}), and no {parcel.mark}: {advice}")
    clashing = ", ".join([name for name in names if parcel.clashes(name)][:3])
    if clashing:
        danger = "which would be taken for a part of what is published, or keep parts of it from being sent"
        raise InputError(f"{repo_id} holds {clashing}, {danger}: remove it on the Hub first")


def upload(plan: Plan, message: str, token: Token = None) -> Published:
    """Carries out a plan: one commit, until which nobody sees anything, downloaded again and compared, then tagged.

    Raises:
        InputError: Somebody else published in the meantime, the Hub refuses or cannot be reached, or what it gives
            back is not what was sent.
    """
    _refuse_tokens(token, {"the message, the title of a public commit,": message})
    if not message.strip():
        raise InputError("a commit needs a title, and the message is empty: leave it out, or write one")
    repo = Repo(plan.repo_id, token, plan.parcel.kind)
    with hub_errors(f"publishing {plan.repo_id}", token):
        if plan.head is None:
            repo.call(HfApi.create_repo, private=plan.private, exist_ok=True)
            plan = replace(plan, head=_check_new(repo, plan))
        if plan.new_branch and not plan.create_pr:
            repo.call(HfApi.create_branch, branch=plan.branch, exist_ok=True)
        commit, revision = _commit(repo, plan, message)
    _verify(repo, plan, commit)
    if plan.tag is not None:
        with hub_errors(f"tagging {plan.repo_id} (the commit {commit[:8]} itself is published and verified)", token):
            repo.call(HfApi.create_tag, tag=plan.tag, revision=commit, exist_ok=True)
            tagged = _list_refs(repo).get(f"refs/tags/{plan.tag}", commit)
            if tagged != commit and not _is_held(repo, plan, tagged):
                taken = f"somebody else put the tag {plan.tag} of {plan.repo_id} on commit {tagged[:8]} meanwhile"
                mine = f"yours is published and verified as commit {commit[:8]}"
                raise InputError(f"{taken}; {mine}: publish again with another tag")
    prefix = "datasets/" if repo.kind == "dataset" else ""
    url = f"{HfApi().endpoint}/{prefix}{plan.repo_id}/commit/{commit}"
    return Published(plan.repo_id, commit, plan.tag or revision, url)


def _check_new(repo: Repo, plan: Plan) -> Any:
    """Returns the first commit of a new repository, which the Hub makes; refuses one that somebody else made."""
    info = find_repo(repo)
    if info is None:
        text = f"{plan.repo_id} is there, and this token may not see it"
        raise InputError(f"{text}: take a token that may, or choose another name")
    if {file.rfilename for file in info.siblings or ()} - _BEFOREHAND or (plan.private and not info.private):
        raise InputError(f"somebody else made {plan.repo_id} meanwhile. {_NOTHING}")
    return info.sha


def _commit(repo: Repo, plan: Plan, message: str) -> tuple[str, str]:
    """Returns the commit and the revision to load; sends again only what has surely not landed."""
    # The same copies each time: what has been uploaded is not uploaded again.
    files = [copy(file) for _, file in sorted(plan.parcel.files.items())]
    removals = [CommitOperationDelete(path) for path in plan.remove]
    where = {"create_pr": plan.create_pr, "revision": None if plan.branch == "main" else plan.branch}
    before = _list_refs(repo) if plan.create_pr else {}

    def send() -> tuple[str, str]:
        how = {"commit_message": message, "parent_commit": plan.head, **where}
        done = repo.call(HfApi.create_commit, [*files, *removals], tries=1, **how)
        return done.oid, (done.pr_revision if plan.create_pr else None) or done.oid

    repo.call(HfApi.preupload_lfs_files, files, free_memory=False, tries=2, **where)
    return with_retries(send, landed=lambda: _find_landed(repo, plan, before))


def _find_landed(repo: Repo, plan: Plan, before: Mapping[str, str]) -> tuple[str, str] | None:
    """Returns the commit that landed although the client raised, and its revision; refuses another's commit."""
    refs = _list_refs(repo)
    if plan.create_pr:
        new = {ref: commit for ref, commit in refs.items() if ref.startswith("refs/pr/") and before.get(ref) != commit}
        return next(((commit, ref) for ref, commit in new.items() if _is_held(repo, plan, commit)), None)
    head = refs.get(f"refs/heads/{plan.branch}")
    if head is None or head == plan.head:
        return None
    if _is_held(repo, plan, head):
        return head, head
    moved = f"{plan.branch} was at {str(plan.head)[:8]} and is at {head[:8]}"
    raise InputError(f"somebody else wrote to {plan.repo_id} meanwhile: {moved}. {_NOTHING}")


def _is_held(repo: Repo, plan: Plan, commit: str) -> bool:
    """Whether a commit has the files of a plan, to the byte, and none of those that it removes.

    Large files are compared by the sha256 that the Hub states; the others are downloaded.
    """
    files = plan.parcel.files
    found = repo.call(HfApi.get_paths_info, [*files, *plan.remove], revision=commit)
    there = {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
    large = {path: entry.lfs.sha256 for path, entry in there.items() if entry.lfs is not None}
    if there.keys() != files.keys() or any(digest_of(files[path]) != sha256 for path, sha256 in large.items()):
        return False
    with tempfile.TemporaryDirectory(prefix="ssdd-hub-compare-") as scratch:
        return not _fetch_differing(repo, plan, commit, there.keys() - large.keys(), Path(scratch))


def _verify(repo: Repo, plan: Plan, commit: str) -> None:
    """Downloads a commit and compares it with what was sent; twice, since a download may be damaged too."""
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="ssdd-hub-verify-") as scratch:
            with hub_errors(f"fetching {plan.repo_id} again to verify commit {commit[:8]}", repo.token):
                wrong = _fetch_differing(repo, plan, commit, plan.parcel.files, Path(scratch))
            if not wrong:
                return plan.parcel.check(Path(scratch))
    raise InputError(
        f"{plan.repo_id} is damaged at commit {commit[:8]}: {', '.join(wrong)} came back otherwise than sent, twice. "
        "It was not tagged: publish again, and tell the Hub's operators if it stays so"
    )


def _fetch_differing(repo: Repo, plan: Plan, commit: str, names: Collection[str], folder: Path) -> list[str]:
    """Downloads files of a commit into a folder; returns those that are not what was packed."""
    if names:
        # With an empty cache, since the client would copy what it has in its own, damaged or not.
        snapshot(repo, commit, names, local_dir=folder, cache_dir=folder / ".cache" / "empty")
    came = pack({name: folder / name for name in names if (folder / name).is_file()})
    return [name for name in names if name not in came or digest_of(came[name]) != digest_of(plan.parcel.files[name])]
