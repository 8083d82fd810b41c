"""Publishing files on the Hub: sent in one commit, fetched again and compared, then tagged."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ssdd_hub.errors import InputError
from ssdd_hub.hub.client import ERRORS, TRIES, Token, explained, guarded, is_passing, patiently, wait_after
from ssdd_hub.hub.parcel import is_held, verify_commit
from ssdd_hub.hub.plan import Plan, find_repo, list_names, refuse_foreign

_STALE = {409, 412}  # what the Hub answers when the branch is not where the publisher saw it


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


def upload(plan: Plan, message: str, token: Token = None) -> Published:
    """Carries out a plan: one commit, fetched again and compared, then tagged.

    Until the commit lands, nobody sees anything; stopped before, the same call can be made again.

    Raises:
        InputError: Somebody else published in the meantime, the Hub refuses or cannot be reached, or what it gives
            back is not what was sent.
    """
    api, parcel = HfApi(token=token), plan.parcel
    if not message.strip():
        raise InputError("a commit needs a title, and the message is empty: leave it out, or write one")
    with explained(f"publishing {plan.repo_id}", token):
        plan = _prepare(api, plan)
        commit, revision, url = _commit(api, plan, message)
    verify_commit(parcel, plan.repo_id, commit, token)
    if plan.tag is not None and not plan.tag_exists:
        with explained(f"tagging {plan.repo_id} (the commit {commit[:8]} itself is published and verified)", token):
            _tag(api, plan, plan.tag, commit)
    return Published(plan.repo_id, commit, plan.tag or revision, url)


def _tag(api: HfApi, plan: Plan, tag: str, commit: str) -> None:
    kind, repo_id = plan.parcel.kind, plan.repo_id
    patiently(lambda: api.create_tag(repo_id, tag=tag, revision=commit, repo_type=kind, exist_ok=True))
    refs = patiently(lambda: api.list_repo_refs(repo_id, repo_type=kind))
    target = next((ref.target_commit for ref in refs.tags if ref.name == tag), commit)
    if target != commit and not is_held(plan.parcel, repo_id, target, plan.remove, api.token):
        raise InputError(
            f"somebody else put the tag {tag} of {repo_id} on commit {target[:8]} meanwhile; yours is published and "
            f"verified as commit {commit[:8]}: publish again with another tag"
        )


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
    info = find_repo(api, plan.parcel.kind, plan.repo_id)
    if info is None:
        raise InputError(
            f"{plan.repo_id} is there, and this token may not see it: take a token that may, or choose another name"
        )
    head: str | None = info.sha
    names = list_names(api, plan.parcel.kind, plan.repo_id, head) if head else []
    refuse_foreign(plan.parcel, plan.repo_id, names)
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
    branch = None if plan.branch == "main" else plan.branch
    # Twice at most, since within it the client tries six times.
    patiently(lambda: _send_large(api, plan, operations, branch), tries=2)
    for attempt in range(1, TRIES + 1):
        try:
            with guarded():
                done = api.create_commit(
                    plan.repo_id,
                    [*operations, *removals],
                    commit_message=message,
                    repo_type=kind,
                    revision=branch,
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


def _send_large(api: HfApi, plan: Plan, operations: list[CommitOperationAdd], branch: str | None) -> None:
    api.preupload_lfs_files(
        plan.repo_id,
        operations,
        repo_type=plan.parcel.kind,
        revision=branch,
        create_pr=plan.create_pr,
        free_memory=False,
    )


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
