"""Publishes a distilled set on the Hub, and on request its teacher, pre-trained students and a collection of them all.

accelerate launch recipes/publish.py --set runs/digits/distilled --repo digits-krrst-50 --dry-run
accelerate launch recipes/publish.py --set runs/digits/distilled --repo digits-krrst-50 --private
accelerate launch recipes/publish.py --repo digits-krrst-50 --teacher runs/digits/teacher --students own

The folder is checked, what will be sent and where is shown, each repository gets one commit, which is fetched again,
verified and tagged. Log in first by `hf auth login`, or set HF_TOKEN. Started again, what is there already stays.
`ssdd-hub push` does the same for a set alone.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ssdd_hub import DistilledSet
from ssdd_hub.checkpoint import atomic_path
from ssdd_hub.cli import describe_published, read_scores
from ssdd_hub.command_line import parse_config
from ssdd_hub.config import PublishConfig
from ssdd_hub.hub import explained, full_id, patiently
from ssdd_hub.launch import build_accelerator, report_errors
from ssdd_hub.markdown import section
from ssdd_hub.publish import Plan, Published, plan_upload, upload
from ssdd_hub.publish_model import pack_model, save_student
from ssdd_hub.publish_set import Additions, plan_set


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
    return plan, plan_upload(parcel, teacher_id, private=config.private)


def publish_students(config: PublishConfig, published: Published) -> list[Published]:
    """Pre-trains students on the published set, and publishes them beside it."""
    distilled, done = DistilledSet.load(config.set), []
    own = section(distilled.provenance, "student")
    for asked in config.students:
        name = str(own.get("name")) if asked == "own" else asked
        args = config.student_args.get(asked, own.get("model_args") if name == own.get("name") else None) or {}
        repo_id, folder = f"{published.repo_id}-{name}", Path(str(config.output), name)
        if not folder.exists():
            source = {"name": published.repo_id, "revision": published.revision}
            save_student(name, distilled, folder, source, config.seed, **args)
        plan = plan_upload(pack_model(folder, repo_id), repo_id, private=config.private)
        print(plan.describe())
        done.append(upload(plan, f"Publish a network pre-trained on {published.repo_id}"))
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
    """Plans, teacher, set, students, collection, record."""
    config = parse_config(PublishConfig, None, description=__doc__)
    accelerator = build_accelerator(config.run, Path(str(config.output)))
    if not accelerator.is_main_process:
        return
    repo_id = full_id(str(config.repo), reads_only=config.dry_run)
    plan, teacher_plan = plan_run(config, repo_id)
    print("\n".join(each.describe() for each in (teacher_plan, plan) if each is not None))
    if config.dry_run:
        print("nothing was sent")
        return
    done = {}
    if teacher_plan is not None:
        done["teacher"] = upload(teacher_plan, "Publish the teacher")
    done["set"] = published = upload(plan, "Publish the distilled set")
    print(*describe_published(published, Path(config.set)), sep="\n")
    students = publish_students(config, published)
    done |= {f"student {student.repo_id.rpartition('-')[2]}": student for student in students}
    record: dict[str, Any] = {name: vars(entry) for name, entry in done.items()}
    if config.collection:
        items = {entry.repo_id: "dataset" if name == "set" else "model" for name, entry in done.items()}
        record["collection"] = collect(config.collection, items, repo_id.partition("/")[0], config.private)
        print(f"collected: {record['collection']}")
    with atomic_path(Path(str(config.output), "published.json")) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
