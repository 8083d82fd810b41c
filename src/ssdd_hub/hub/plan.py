"""Looking before publishing: what is where, what may be written there, and what that would change."""

import re
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ssdd_hub.errors import InputError
from ssdd_hub.hub.client import TIMEOUT, Token, explained, patiently, saved_token
from ssdd_hub.hub.parcel import Parcel, is_held

_BEFOREHAND = {".gitattributes", "README.md"}  # what a repository may hold that was made on the Hub, and is empty
_SHORTEST_TOKEN = 8  # a shorter one could stand in any text


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
        names = list_names(api, parcel.kind, repo_id, head) if head else []
    if re.fullmatch("[0-9a-f]{40}", branch):
        raise InputError(f"a set is published on a branch, and {revision} is the sha of a commit: give a branch")
    if revision in tags:
        raise InputError(f"{revision} is a tag of {repo_id}, and a tag stays where it is: give a branch")
    if info is not None and private and not info.private:
        raise InputError(f"{repo_id} is there and public: make it private in its settings first, or choose another")
    refuse_foreign(parcel, repo_id, names)
    _refuse_token(parcel, token)
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


def find_repo(api: HfApi, kind: str, repo_id: str) -> Any:
    """Returns what the Hub tells of a repository; None when there is none that the token may see."""
    try:
        return patiently(lambda: api.repo_info(repo_id, repo_type=kind, timeout=TIMEOUT))
    except RepositoryNotFoundError:
        return None


def list_names(api: HfApi, kind: str, repo_id: str, revision: str) -> list[str]:
    """Returns the paths of all files of a revision."""
    return patiently(lambda: api.list_repo_files(repo_id, repo_type=kind, revision=revision))


def refuse_foreign(parcel: Parcel, repo_id: str, names: list[str]) -> None:
    """Refuses a repository of something else, or with files that would spoil the publication.

    Raises:
        InputError: It is one.
    """
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
    for path, content in parcel.files.items():
        if len(secret) >= _SHORTEST_TOKEN and isinstance(content.source, bytes) and secret.encode() in content.source:
            raise InputError(f"{path} holds your access token: remove it from the record, and revoke the token")
