"""Publishing the folder of a distilled set: checked, its card rendered for its new place, sent and verified."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path
from ssdd_hub.hub.client import Token, full_id
from ssdd_hub.hub.download import clashes_with_set, is_set_file
from ssdd_hub.hub.upload import Parcel, Plan, Published, digest_of, pack, plan_upload, upload
from ssdd_hub.record import CARD_FILE, METADATA_FILE, dump_metadata, place_in_card, read_metadata, section
from ssdd_hub.sets.card import render_dataset_card
from ssdd_hub.sets.check import Finding, check_card, check_set, check_set_licence, verify_folder
from ssdd_hub.sets.origin import publishing_risks
from ssdd_hub.statements import without_folders
from ssdd_hub.text import printable

MESSAGE = "Publish the distilled set"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CardOverrides:
    """Facts that are added to the record of a set when it is published.

    Attributes:
        license: Licence of the set; by default the recorded one, which is derived from those of source and teacher.
        license_reason: Why that licence may be more permissive than those: a permission that you have.
        teacher: The teacher's repository on the Hub, `owner/name`.
        scores: Records of `scores.json` that take the place of the recorded ones.
        use: How the students were pre-trained that these are of; it takes the place of the recorded recipe.
    """

    license: str | None = None
    license_reason: str | None = None
    teacher: str | None = None
    scores: Sequence[Mapping[str, Any]] | None = None
    use: Mapping[str, Any] | None = None

    def add(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the record of a set with these additions; raises an `InputError` for a licence too free."""
        provenance = dict(section(metadata, "provenance"))
        stated = {name: getattr(self, name) for name in ("license", "license_reason", "scores", "use")}
        provenance |= {name: value for name, value in stated.items() if value is not None}
        if self.teacher is not None:
            provenance["teacher"] = {**section(provenance, "teacher"), "hub": self.teacher}
        check_set_licence(provenance)
        return {**metadata, "provenance": provenance}


def pack_set(
    folder: str | Path,
    repo_id: str,
    tag: str | None = None,
    additions: CardOverrides | None = None,
    branch: str | None = None,
) -> tuple[Parcel, str]:
    """Returns what is sent of the folder of a set, and the tag; raises an `InputError` where the linter finds errors.

    The card's code loads `repo_id` at the tag; at the branch where `tag` is empty. None is a tag made of the contents.
    """
    folder = Path(folder)
    metadata = (additions or CardOverrides()).add(read_metadata(folder))
    _refuse_errors(folder, check_set(folder, metadata))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    sources: dict[str, Path | bytes] = {name: folder / name for name in names if is_set_file(name)}
    sources[METADATA_FILE] = dump_metadata(metadata).encode()
    sources[CARD_FILE] = render_dataset_card(metadata, repo_id).encode()
    files = pack(sources)
    if tag is None:
        # Made of the contents, the card being one that names no tag.
        digests = "".join(f"{name} {digest_of(file)}\n" for name, file in sorted(files.items()))
        tag = f"set-{hashlib.sha256(digests.encode()).hexdigest()[:8]}"
    files |= pack({CARD_FILE: _checked_card(folder, metadata, repo_id, tag or branch).encode()})
    return Parcel("dataset", files, is_set_file, METADATA_FILE, verify_folder, clashes_with_set), tag


def _checked_card(folder: Path, metadata: Mapping[str, Any], location: str, revision: str | None = None) -> str:
    card = render_dataset_card(metadata, location, revision)
    _refuse_errors(folder, check_card(metadata, card))
    return card


def _refuse_errors(folder: Path, found: list[Finding]) -> None:
    errors = [f"{finding.place}: {finding.text}" for finding in found if finding.level == "error"]
    if errors:
        raise InputError("\n  ".join([f"{folder} cannot be published as it is:", *errors]))


def rerender_card(folder: str | Path, additions: CardOverrides, location: str | None = None) -> None:
    """Renders the card of a folder again, from its record with additions, and replaces both.

    The card's code loads `location`, by default this folder, from inside it. An `InputError`, as of `pack_set`, leaves
    the folder as it was.
    """
    folder = Path(folder)
    metadata = additions.add(read_metadata(folder))
    provenance = metadata["provenance"]
    if provenance.get("settings"):
        # Runs of earlier versions recorded more of a path than its last part.
        provenance["settings"] = without_folders(section(provenance, "settings"))
    _refuse_errors(folder, check_set(folder, metadata))
    card = _checked_card(folder, metadata, location or place_in_card(folder))
    for name, text in ((METADATA_FILE, dump_metadata(metadata)), (CARD_FILE, card)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def plan_set(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    token: Token = None,
    additions: CardOverrides | None = None,
    dry_run: bool = False,
) -> Plan:
    """Checks a set and its place on the Hub, and plans what is sent; `upload` carries it out.

    `repo_id` may lack the owner. A repository made here is `private`; an existing one must be so already. The commit
    goes to the branch `revision`, made if missing, or into a pull request. `tag` is by default made of the contents,
    and none for a pull request. With `dry_run` the token need not write. A warning is logged where the source is not
    known to be public, and where images resemble real ones. Raises an `InputError` where the set, its
    licence or the token is refused, or the repository holds something else.
    """
    tag = "" if create_pr and tag is None else tag
    repo_id = full_id(repo_id, token, dry_run)
    for risk in publishing_risks(section(read_metadata(Path(folder)), "provenance")):
        _LOG.warning("%s", printable(f"warning: {risk}"))
    parcel, chosen = pack_set(folder, repo_id, tag, additions, None if create_pr else revision)
    return plan_upload(
        parcel, repo_id, private=private, revision=revision, create_pr=create_pr, tag=chosen or None, token=token
    )


def push_set(
    folder: str | Path, repo_id: str, *, token: Token = None, message: str = MESSAGE, **how: Any
) -> Published:
    """Publishes the folder of a set: `plan_set`, whose options it takes, then `upload` under the title `message`."""
    return upload(plan_set(folder, repo_id, token=token, **how), message, token)
