"""Publishes a distilled set on the Hub, and on request its teacher, pre-trained students and a collection of them all.

accelerate launch recipes/publish.py --set runs/digits/distilled --repo digits-krrst-50 --dry-run
accelerate launch recipes/publish.py --set runs/digits/distilled --repo digits-krrst-50 --private
accelerate launch recipes/publish.py --repo digits-krrst-50 --teacher runs/digits/teacher --students own

The folder is checked, what will be sent and where is shown, each repository gets one commit, which is fetched again,
verified and tagged. Log in first by `hf auth login`, or set HF_TOKEN. Started again, what is there already stays.
What was published is recorded in published.json, also when something later fails. `ssdd-hub push` does the same for a
set alone.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from ssdd_hub import DistilledSet
from ssdd_hub.checkpoint import atomic_path
from ssdd_hub.cli import describe_published, read_scores
from ssdd_hub.command_line import parse_config
from ssdd_hub.config import PublishConfig
from ssdd_hub.errors import InputError
from ssdd_hub.hub import explained, full_id, patiently
from ssdd_hub.launch import build_accelerator, report_errors
from ssdd_hub.markdown import section
from ssdd_hub.publish import Plan, Published, plan_upload, upload
from ssdd_hub.publish_model import pack_model, save_student
from ssdd_hub.publish_set import Additions, plan_set
from ssdd_hub.storage import read_metadata
from ssdd_hub.students import StudentSettings, build_student
from ssdd_hub.teacher import build_teacher


def plan_run(config: PublishConfig, repo_id: str) -> tuple[Plan, Plan | None]:
    """Plans the set and its teacher, so that a mistake in either is known before anything is sent."""
    teacher_id = f"{repo_id}-teacher"
    scores = None if config.scores is None else read_scores(Path(config.scores))
    additions = Additions(config.license, config.license_reason, teacher_id if config.teacher else None, scores)
    plan = plan_set(
        config.set,
        repo_id,
        private=config.private,
        revision=config.revision,
        create_pr=config.create_pr,
        tag=config.tag,
        additions=additions,
        dry_run=config.dry_run,
    )
    if config.teacher is None:
        return plan, None
    parcel = pack_model(config.teacher, teacher_id, [repo_id])
    check_teacher(config.set, config.teacher)
    return plan, plan_upload(parcel, teacher_id, private=config.private)


def check_teacher(folder: str, teacher_folder: str) -> None:
    """Refuses a teacher that is not the set's own, as far as the set tells: both cards would name the wrong one."""
    recorded = section(section(read_metadata(Path(folder)), "provenance"), "teacher")
    teacher = build_teacher(f"local-dir:{teacher_folder}")
    # The hash covers the type, and a run in double precision has a teacher in it.
    hashes = {teacher.weights_sha256(), teacher.double().weights_sha256()}
    if recorded.get("weights_sha256") not in {None, *hashes}:
        raise InputError(
            f"{folder} was distilled with another teacher than that of {teacher_folder}, it records other weights (of "
            f"{recorded.get('name')}): give its own, or leave --teacher out"
        )


@dataclass(frozen=True)
class Student:
    """A network to be pre-trained on the set.

    Attributes:
        name: A timm model name.
        args: Arguments of the model.
        repo_id: Where it is published.
    """

    name: str
    args: dict[str, Any]
    repo_id: str

    def folder_in(self, output: Path, source: dict[str, Any], seed: int) -> Path:
        """Returns its own place: one that was pre-trained on another set, or otherwise, is never taken for it."""
        facts = json.dumps([self.name, self.args, source, seed], sort_keys=True)
        return output / f"{self.name}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def plan_students(config: PublishConfig, repo_id: str) -> list[Student]:
    """Builds each student once, so that a mistake in one is known before anything is sent."""
    metadata = read_metadata(Path(config.set))
    own = section(section(metadata, "provenance"), "student")
    (_, channels, _, side), (_, width) = (metadata["tensors"][name]["shape"] for name in ("images", "targets"))
    students: dict[str, Student] = {}
    for asked in config.students:
        name = own.get("name") if asked == "own" else asked
        if name is None:
            raise InputError(
                f"{config.set} does not record which network it was distilled with: name a timm model in place of own"
            )
        recorded = own.get("model_args") or {} if name == own.get("name") else {}
        settings = StudentSettings(name, config.student_args.get(asked, recorded))
        if name in students:
            raise InputError(f"students has {name} twice (own is {own.get('name')}), and there is one place for it")
        build_student(name, num_targets=width, in_chans=channels, image_size=side, **settings.model_args)
        students[name] = Student(name, settings.model_args, f"{repo_id}-{name}")
        with explained(f"publishing {students[name].repo_id}"):
            validate_repo_id(students[name].repo_id)
    return list(students.values())


def publish_student(config: PublishConfig, student: Student, published: Published) -> Published:
    """Pre-trains a student on the published set, and publishes it beside it."""
    source = {"name": published.repo_id, "revision": published.revision}
    folder = student.folder_in(Path(str(config.output)), source, config.seed)
    if not folder.exists():
        distilled = DistilledSet.load(config.set)
        if config.license is not None:
            distilled.provenance["license"] = config.license
        save_student(student.name, distilled, folder, source, config.seed, **student.args)
    plan = plan_upload(pack_model(folder, student.repo_id), student.repo_id, private=config.private)
    print(plan.describe())
    done = upload(plan, f"Publish a network pre-trained on {published.repo_id}")
    print(f"published and verified: {done.url}")
    return done


def collect(title: str, items: dict[str, str], namespace: str, private: bool) -> str:
    """Puts repositories into a collection, made if it is not there; returns its address."""
    api = HfApi()
    with explained(f"collecting {', '.join(items)}"):
        collection = patiently(
            lambda: api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
        )
        for repo_id, kind in items.items():
            _add(api, collection.slug, repo_id, kind)
    return str(collection.url)


def _add(api: HfApi, slug: str, repo_id: str, kind: Any) -> None:
    patiently(lambda: api.add_collection_item(slug, repo_id, kind, exists_ok=True))


@report_errors
def main() -> None:
    """Plans, teacher, set, students, collection; the record grows with each."""
    config = parse_config(PublishConfig, None, description=__doc__)
    accelerator = build_accelerator(config.run, Path(str(config.output)))
    if not accelerator.is_main_process:
        return
    repo_id = full_id(str(config.repo), reads_only=config.dry_run)
    plan, teacher_plan = plan_run(config, repo_id)
    students = plan_students(config, repo_id)
    print(*(each.describe() for each in (teacher_plan, plan) if each is not None), sep="\n")
    for student in students:
        print(f"then to the model {student.repo_id}: {student.name}, pre-trained on the set")
    if config.collection:
        print(f"all of it into the collection {config.collection!r} of {repo_id.partition('/')[0]}")
    if config.dry_run:
        print("nothing was sent")
        return
    record: dict[str, Any] = {}
    if teacher_plan is not None:
        teacher = upload(teacher_plan, "Publish the teacher")
        note(config, record, teacher=vars(teacher))
        print(f"published and verified: {teacher.url}")
    published = upload(plan, "Publish the distilled set")
    note(config, record, set=vars(published))
    print(*describe_published(published, Path(config.set)), sep="\n")
    for student in students:
        done = publish_student(config, student, published)
        note(config, record, **{f"student {student.name}": vars(done)})
    if config.collection:
        items = {entry["repo_id"]: "dataset" if name == "set" else "model" for name, entry in record.items()}
        address = collect(config.collection, items, repo_id.partition("/")[0], config.private)
        note(config, record, collection=address)
        print(f"collected: {address}")


def note(config: PublishConfig, record: dict[str, Any], **facts: Any) -> None:
    """Adds to the record of what was published, and writes it at once: whatever fails next, it tells what is there."""
    record.update(facts)
    with atomic_path(Path(str(config.output), "published.json")) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
