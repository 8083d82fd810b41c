"""Publishes a distilled set on the Hub, and on request its teacher, pre-trained students and a collection of them all.

accelerate launch recipes/publish.py --set runs/digits/distilled --repo digits-krrst-50 --dry-run
accelerate launch recipes/publish.py --set runs/digits/distilled --repo digits-krrst-50 --private
accelerate launch recipes/publish.py --repo digits-krrst-50 --teacher runs/digits/teacher --students own

The folder is checked, what will be sent and where is shown, each repository gets one commit, which is fetched again,
verified and tagged. Log in first by `hf auth login`, or set HF_TOKEN. Started again, what is there already stays.
What was published is recorded in published.json, also when something later fails. `ssdd-hub push` does the same for a
set alone.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssdd_hub import InputError
from ssdd_hub.cli import describe_published, read_scores
from ssdd_hub.errors import require
from ssdd_hub.files import atomic_path
from ssdd_hub.hub.client import full_id
from ssdd_hub.hub.upload import Plan, Published, plan_upload, upload
from ssdd_hub.plain_files import require_plain
from ssdd_hub.runs import UntrackedSettings, build_accelerator, report_errors
from ssdd_hub.runs.folder import folder_name
from ssdd_hub.runs.launch import keeping
from ssdd_hub.runs.lock import FolderLock
from ssdd_hub.sets.publish import CardOverrides, plan_set
from ssdd_hub.sets.release import check_teacher, collect, pack_model, plan_students
from ssdd_hub.settings import parse_config

RECORD = "published.json"


@dataclass(frozen=True)
class PublishConfig:
    """What of a run is published, and where.

    Attributes:
        set: Folder of the distilled set.
        repo: Its repository on the Hub: `owner/name`, or a name in your own namespace.
        private: Whether repositories made here are private; those that are there must be so already. Beside a set
            that is private already they are so without being asked.
        revision: A branch for the set, made if it is not there; `main` when not given.
        create_pr: Offer the set as a pull request.
        tag: Tag of the set; when not given `set-` and eight digits made of its contents.
        license: Licence of the set; when not given, the one derived from those of source and teacher.
        license_reason: The permission by which that licence may be more permissive than those.
        scores: A `scores.json` whose records the card shows in place of the run's own, with the recipe that it states.
        teacher: Folder of the teacher, such as `runs/NAME/teacher`, to be published as well.
        students: timm models that are pre-trained on the set and published as well, as `REPO-MODEL`; `own` is the
            network that the set was distilled with.
        student_args: Arguments of students, by the names that `students` gives them:
            `--student-args.ssdd_convnet3.widths '[32, 64]'`.
        collection: Title of a collection of all that is published.
        dry_run: Show what would be sent and where, and stop.
        run: How the process computes.
        seed: Seed of the students.
        output: The folder of the students, and of the record of what was published; `runs/NAME-published` when not
            given, after the repository.
    """

    set: str = "runs/digits/distilled"
    repo: str | None = None
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    license: str | None = None
    license_reason: str | None = None
    scores: str | None = None
    teacher: str | None = None
    students: list[str] = field(default_factory=list)
    student_args: dict[str, Any] = field(default_factory=dict)
    collection: str | None = None
    dry_run: bool = False
    run: UntrackedSettings = field(default_factory=UntrackedSettings)
    seed: int = 0
    output: str = ""

    def __post_init__(self) -> None:
        idle = ", ".join(str(name) for name in self.student_args if name not in self.students)
        no_names = ", ".join(str(name) for name, args in self.student_args.items() if not isinstance(args, dict))
        require(
            (bool(self.repo), "repo must name the repository: --repo owner/name"),
            (not idle, f"student_args has arguments of {idle}, which students does not name"),
            (not no_names, f"student_args must hold {{name: value}} for each student, and does not for {no_names}"),
        )
        if not self.output:
            object.__setattr__(self, "output", f"runs/{folder_name(str(self.repo))}-published")


def plan_run(config: PublishConfig, repo_id: str) -> tuple[Plan, Plan | None]:
    """Plans the set and its teacher, so that a mistake in either is known before anything is sent."""
    teacher_id = f"{repo_id}-teacher"
    scores = {} if config.scores is None else read_scores(Path(config.scores))
    additions = CardOverrides(config.license, config.license_reason, teacher_id if config.teacher else None, **scores)
    place: dict[str, Any] = {"private": config.private, "revision": config.revision}
    place |= {"create_pr": config.create_pr, "tag": config.tag}
    plan = plan_set(config.set, repo_id, **place, additions=additions, dry_run=config.dry_run)
    if config.teacher is None:
        return plan, None
    parcel = pack_model(config.teacher, teacher_id, [repo_id])
    check_teacher(config.set, config.teacher)
    # What belongs to a private set is as private as it is.
    return plan, plan_upload(parcel, teacher_id, private=plan.private)


@report_errors
def main() -> None:
    """Plans, teacher, set, students, collection; the record grows with each."""
    config = parse_config(PublishConfig, None, description=__doc__)
    output = Path(config.output)
    accelerator = build_accelerator(config.run, output)
    if not accelerator.is_main_process:
        return
    repo_id = full_id(str(config.repo), reads_only=config.dry_run)
    plan, teacher_plan = plan_run(config, repo_id)
    students = plan_students(config.students, config.student_args, config.set, repo_id)
    print(*(each.describe() for each in (teacher_plan, plan) if each is not None), sep="\n")
    for student in students:
        print(f"then to the model {student.repo_id}: {student.name}, pre-trained on the set")
    if config.collection:
        print(f"all of it into the collection {config.collection!r} of {repo_id.partition('/')[0]}")
    if config.dry_run:
        print("nothing was sent")
        return
    # Until the recipe ends.
    FolderLock(output).acquire()
    record = read_record(output, repo_id)

    def send(name: str, plan: Plan, message: str) -> Published:
        """Uploads and records it at once: whatever fails next, the record tells what is there."""
        published = upload(plan, message)
        note(output, record, name, vars(published))
        return published

    with keeping("the record of what was published", output / RECORD):
        if teacher_plan is not None:
            print(f"published and verified: {send('teacher', teacher_plan, 'Publish the teacher').url}")
        published = send("set", plan, "Publish the distilled set")
        print(*describe_published(published, Path(config.set)), sep="\n")
        own = {"licence": config.license, "seed": config.seed, "device": accelerator.device}
        for student in students:
            folder = student.pretrain(config.set, published, output, **own)
            student_plan = plan_upload(pack_model(folder, student.repo_id), student.repo_id, private=plan.private)
            print(student_plan.describe())
            message = f"Publish a network pre-trained on {published.repo_id}"
            print(f"published and verified: {send(f'student {student.name}', student_plan, message).url}")
        if config.collection:
            entries = {name: entry["repo_id"] for name, entry in record.items() if name != "collection"}
            items = {place: "dataset" if name == "set" else "model" for name, place in entries.items()}
            address = collect(config.collection, items, repo_id.partition("/")[0], plan.private)
            note(output, record, "collection", address)
            print(f"collected: {address}")


def read_record(folder: Path, repo_id: str) -> dict[str, Any]:
    """Returns what earlier starts published, by its name; raises an `InputError` where that is of another set."""
    path = folder / RECORD
    require_plain(folder, [RECORD])
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        places = [str(entry["repo_id"]) for name, entry in record.items() if name != "collection"]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no record of what was published ({error}): choose another --output") from error
    if not all(f"{place}-".startswith(f"{repo_id}-") for place in places):
        raise InputError(f"{path} is the record of {', '.join(places)}, not of {repo_id}: choose another --output")
    return dict(record)


def note(folder: Path, record: dict[str, Any], name: str, fact: Any) -> None:
    """Adds to the record of what was published, and writes it."""
    record[name] = fact
    with atomic_path(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
