"""Publishing files on the Hub: looked at first, sent in one commit, fetched again and compared, then tagged."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ssdd_hub.errors import InputError
from ssdd_hub.hub import ERRORS, TIMEOUT, TRIES, Token, explained, guarded, is_passing, patiently, wait_after
from ssdd_hub.parcel import Parcel, is_held, verify_commit

_STALE = {409, 412}  # what the Hub answers when the branch is not where the publisher saw it
_BEFOREHAND = {".gitattributes", "README.md"}  # what a repository may hold that was made on the Hub, and is empty


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
        sizes = {path: content.size for path, content in self.parcel.files.items()}
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
    if tag in tags:
        with explained(f"looking at {repo_id}", token):
            if not is_held(parcel, repo_id, tags[tag], remove, token):
                raise InputError(f"{repo_id} has a tag {tag} already, of commit {tags[tag][:8]}: choose another one")
    return Plan(
        parcel, repo_id, info is not None, private, branch, new_branch, head, remove, create_pr, tag, tag in tags
    )


def _info(api: HfApi, kind: str, repo_id: str) -> Any:
    try:
        return patiently(lambda: api.repo_info(repo_id, repo_type=kind, timeout=TIMEOUT))
    except RepositoryNotFoundError:
        return None


def _names(api: HfApi, kind: str, repo_id: str, revision: str) -> list[str]:
    return patiently(lambda: api.list_repo_files(repo_id, repo_type=kind, revision=revision))


def _refuse_foreign(parcel: Parcel, repo_id: str, names: list[str]) -> None:
    foreign = [name for name in names if name not in _BEFOREHAND]
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
    verify_commit(parcel, plan.repo_id, commit, token)
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
    kind, head = plan.parcel.kind, plan.head
    if not plan.exists:
        patiently(lambda: api.create_repo(plan.repo_id, repo_type=kind, private=plan.private, exist_ok=True))
        head = _check_new(api, plan)
    if plan.new_branch and not plan.create_pr:
        patiently(lambda: api.create_branch(plan.repo_id, branch=plan.branch, repo_type=kind, exist_ok=True))
    return replace(plan, head=head)


def _check_new(api: HfApi, plan: Plan) -> str | None:
    """Returns the first commit of a new repository, which the Hub makes; refuses one that somebody else made."""
    info = _info(api, plan.parcel.kind, plan.repo_id)
    head = None if info is None else info.sha
    names = _names(api, plan.parcel.kind, plan.repo_id, head) if head else []
    _refuse_foreign(plan.parcel, plan.repo_id, names)
    if plan.parcel.mark in names or (plan.private and not info.private):
        raise InputError(
            f"somebody else made {plan.repo_id} meanwhile. Nothing of yours was written; look at theirs, and publish "
            "again to replace it"
        )
    return head


def _commit(api: HfApi, plan: Plan, message: str) -> tuple[str, str, str]:
    """Returns the commit, the revision to load, and an address; sends again only what has surely not landed."""
    kind = plan.parcel.kind
    before = _pull_requests(api, plan) if plan.create_pr else {}
    # The same objects each time: what has been uploaded is not uploaded again.
    operations = [CommitOperationAdd(path, content.source) for path, content in sorted(plan.parcel.files.items())]
    removals = [CommitOperationDelete(path) for path in plan.remove]
    for attempt in range(1, TRIES + 1):
        try:
            with guarded():
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
            if is_held(plan.parcel, plan.repo_id, commit, plan.remove, api.token):
                return commit, ref, _url(api, plan, commit)
        return None
    refs = patiently(lambda: api.list_repo_refs(plan.repo_id, repo_type=plan.parcel.kind))
    head = {ref.name: ref.target_commit for ref in refs.branches}.get(plan.branch)
    if head is None or head == plan.head:
        return None
    if is_held(plan.parcel, plan.repo_id, head, plan.remove, api.token):
        return head, head, _url(api, plan, head)
    raise InputError(
        f"somebody else wrote to {plan.repo_id} meanwhile: {plan.branch} was at {str(plan.head)[:8]} and is at "
        f"{head[:8]}. Nothing of yours was written; look at theirs, and publish again to replace it"
    )


def _pull_requests(api: HfApi, plan: Plan) -> dict[str, str]:
    refs = patiently(lambda: api.list_repo_refs(plan.repo_id, repo_type=plan.parcel.kind, include_pull_requests=True))
    return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}


def _url(api: HfApi, plan: Plan, commit: str) -> str:
    prefix = "datasets/" if plan.parcel.kind == "dataset" else ""
    return f"{api.endpoint}/{prefix}{plan.repo_id}/commit/{commit}"
