"""Models that belong to a set: its teacher and pre-trained students, packed and published beside it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not among its listed names
from torch import nn

from ssdd_hub import arguments
from ssdd_hub.errors import InputError
from ssdd_hub.hub.client import hub_errors, saved_token, with_retries
from ssdd_hub.hub.licences import split_licences
from ssdd_hub.hub.upload import Parcel, Published, pack
from ssdd_hub.models.build import StudentSettings, build_student
from ssdd_hub.models.pretraining import check_batches
from ssdd_hub.record import CARD_FILE, METADATA_FILE, dump_metadata, hash_json, read_metadata, section
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.seeds import seeded
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import pretrain_student, stated_use
from ssdd_hub.sets.storage import shown_shapes
from ssdd_hub.statements import stated_student
from ssdd_hub.teachers.card import STUDENT_OBJECTIVE, render_teacher_card
from ssdd_hub.teachers.recorded_teacher import UNCOMPARED, compare_teacher, load_recorded
from ssdd_hub.teachers.teacher import Teacher, build_teacher
from ssdd_hub.text import refuse_tokens

_FILES = ("config.json", "model.safetensors")
_LOG = logging.getLogger(__name__)


def pack_model(folder: str | Path, repo_id: str, sets: Sequence[str] = ()) -> Parcel:
    """Packs a folder that `Teacher.save` wrote for a model repository, whose card names the sets distilled with it.

    Raises an `InputError` for a folder that lacks a part or does not load.
    """
    folder = Path(folder)
    missing = [name for name in (*_FILES, METADATA_FILE) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} is no folder of a model that can be published, it has no {', '.join(missing)}: give one that "
            "recipes/train_teacher.py, distill.py or publish.py wrote"
        )
    path, metadata = folder / METADATA_FILE, read_metadata(folder, of_model=True)
    build_teacher(f"local-dir:{folder}")
    if sets:
        metadata["provenance"] = {**metadata["provenance"], "sets": list(sets)}
    try:
        card = render_teacher_card(metadata, repo_id)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is incomplete ({error!r}): save the model again") from error
    texts = {METADATA_FILE: dump_metadata(metadata), CARD_FILE: card}
    refuse_tokens({str(folder / name): text for name, text in texts.items()})
    sources: dict[str, Path | bytes] = {name: folder / name for name in _FILES}
    sources |= {name: text.encode() for name, text in texts.items()}
    return Parcel("model", pack(sources), lambda path: path in sources, METADATA_FILE)


def save_student(
    name: str,
    distilled: DistilledSet,
    folder: str | Path,
    source: dict[str, Any],
    seed: int = 0,
    device: torch.device | str = "cpu",
    **model_args: Any,
) -> nn.Module:
    """Pre-trains a student by the recipe of the set, and writes it in timm's layout with a card.

    The card names the `source`: `name` of the set and, when it is on the Hub, its `revision`. `seed` decides the
    weights, the order of the images and their augmentation. An existing folder is kept. Returns the student in eval
    mode, on the CPU. Raises an `InputError` for a student that cannot be built, or does not fit the set.
    """
    size, side = len(distilled.images), distilled.student_shape["image_size"]
    with seeded(seed, "published student"):
        student = build_student(name, **distilled.student_shape, **model_args)
    pretrain_student(student.to(device), distilled, seed)
    student.cpu()
    licence = str(distilled.provenance.get("license") or "unknown")
    title = f"{name} pre-trained on {source['name']}"
    provenance = {
        "objective": {"name": STUDENT_OBJECTIVE},
        "source": {**source, "num_images": size, "license": licence},
        "settings": {"student": {"name": name, **model_args}, "use": stated_use(distilled.provenance)},
        "seed": seed,
        "versions": describe_versions(),
    }
    Teacher(student, distilled.student_pixel_space, side, title, licence).save(Path(folder), provenance)
    # `Teacher` froze it.
    return student.requires_grad_(True)


def check_teacher(folder: str | Path, teacher_folder: str | Path) -> None:
    """Raises an `InputError` for a teacher of other weights, structure, input or licence than a set records."""
    provenance = section(read_metadata(Path(folder)), "provenance")
    teacher = load_recorded(provenance, str(teacher_folder))
    found = compare_teacher(provenance, teacher)
    if found.differences:
        raise InputError(
            f"{folder} was distilled with another teacher than that of {teacher_folder}, it records "
            f"{arguments.show(section(provenance, 'teacher').get('name'))} "
            f"({'; '.join(found.differences.values())}): give its own, or leave --teacher out"
        )
    recorded = section(provenance, "teacher").get("license")
    # No feature depends on it, and what the set may be published under does.
    if recorded is not None and split_licences(recorded) != split_licences(teacher.license):
        raise InputError(
            f"{folder} records its teacher under the licence {arguments.show(recorded)}, and {teacher_folder} states "
            f"{arguments.show(teacher.license)}: find out which holds, and state it in both, or leave --teacher out"
        )
    if found.uncompared:
        _LOG.warning("%s: %s", teacher_folder, UNCOMPARED)


@dataclass(frozen=True)
class Student:
    """A timm model with its arguments, to be pre-trained on a set, and the repository where it is published."""

    name: str
    args: dict[str, Any]
    repo_id: str

    def pretrain(
        self,
        folder: str | Path,
        published: Published,
        output: Path,
        *,
        licence: str | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Path:
        """Pre-trains it by the recipe of the set, or takes what the same call pre-trained before; returns its folder.

        `licence` is that of the set, where it is not the recorded one; `output` holds a folder for each student.
        """
        source = {"name": published.repo_id, "revision": published.revision}
        # The content of the set too: a repository that was made anew may have the same tag on another set.
        digest = hash_json([self.name, self.args, source, seed, licence, read_metadata(Path(folder))])
        place = output / f"{self.name}-{digest[:8]}"
        if not place.exists():
            distilled = DistilledSet.load(folder)
            if licence is not None:
                distilled.provenance["license"] = licence
            save_student(self.name, distilled, place, source, seed, device, **self.args)
        return place


def plan_students(
    words: Sequence[str], args: Mapping[str, dict[str, Any]], folder: str | Path, repo_id: str
) -> list[Student]:
    """Builds each student once, so that a mistake in one is an `InputError` before anything is sent.

    `words` are timm model names, or `own` for the network that the set was distilled with; `args` are by these words.
    """
    metadata = read_metadata(Path(folder))
    own = stated_student(section(metadata, "provenance")) or {}
    (size, channels, _, side), (_, width) = (shown_shapes(metadata)[name] for name in ("images", "targets"))
    students: dict[str, Student] = {}
    for word in words:
        name = own.get("name") if word == "own" else word
        if name is None:
            raise InputError(
                f"{folder} does not record which network it was distilled with: name a timm model in place of own"
            )
        recorded = own["model_args"] if name == own.get("name") else {}
        # A model that others build by timm has the features that timm reads.
        recorded = {key: value for key, value in recorded.items() if key != "features"}
        settings = StudentSettings(name, args.get(word, recorded))
        if name in students:
            raise InputError(f"students has {name} twice (own is {own.get('name')}), and there is one place for it")
        shape: dict[str, Any] = {"in_chans": channels, "image_size": side}
        student = build_student(name, num_targets=width, **shape, **settings.model_args)
        batch = min(stated_use(section(metadata, "provenance")).get("batch_size", size), size)
        check_batches(student, {"the recipe of the set": batch}, **shape)
        students[name] = Student(name, settings.model_args, f"{repo_id}-{name}")
        with hub_errors(f"publishing {students[name].repo_id}"):
            validate_repo_id(students[name].repo_id)
    return list(students.values())


def collect(title: str, items: Mapping[str, str], namespace: str, private: bool = False) -> str:
    """Puts repositories, `dataset` or `model` by id, into a collection, made if missing, and returns its address."""
    refuse_tokens({"the title of the collection": title, "the owner": namespace}, [saved_token()])
    api = HfApi()
    add: Callable[..., Any] = api.add_collection_item
    make = partial(api.create_collection, title, namespace=namespace, private=private, exists_ok=True)
    with hub_errors(f"collecting {', '.join(items)}"):
        collection = with_retries(make)
        for repo_id, kind in items.items():
            with_retries(partial(add, collection.slug, repo_id, kind, exists_ok=True))
    return str(collection.url)
