"""Publishing teachers and pre-trained students: timm's layout, safetensors alone, a card rendered for its place."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssdd_hub import storage
from ssdd_hub.distilled import DistilledSet
from ssdd_hub.errors import InputError
from ssdd_hub.hub import blot_tokens
from ssdd_hub.machine import describe_versions
from ssdd_hub.parcel import Content, Parcel
from ssdd_hub.streams import seeded
from ssdd_hub.students import build_student
from ssdd_hub.teacher import Teacher, build_teacher
from ssdd_hub.teacher_card import STUDENT_OBJECTIVE, render_teacher_card
from ssdd_hub.use import pretrain_student, stated_use

_WEIGHTS = "model.safetensors"
_FILES = ("config.json", _WEIGHTS)
_OWN = {*_FILES, storage.CARD_FILE, storage.METADATA_FILE}


def is_model_file(path: str) -> bool:
    """Whether a path in a repository is that of a file of a published model."""
    return path in _OWN


def pack_model(folder: str | Path, repo_id: str, sets: Sequence[str] = ()) -> Parcel:
    """Packs the folder of a teacher, or of a pre-trained student, for a model repository.

    Args:
        folder: The folder, in timm's layout with our record, as `Teacher.save` writes it.
        repo_id: `owner/name`, which the card's code loads.
        sets: Repositories of the sets that were distilled with it.

    Raises:
        InputError: The folder lacks a part, or does not load.
    """
    folder = Path(folder)
    missing = [name for name in (*_FILES, storage.METADATA_FILE) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} is no folder of a model that can be published, it has no {', '.join(missing)}: give one that "
            "recipes/train_teacher.py, distill.py or publish.py wrote"
        )
    build_teacher(f"local-dir:{folder}")
    texts = _write_texts(folder, repo_id, sets)
    sources: dict[str, Path | bytes] = {name: folder / name for name in _FILES}
    sources |= {name: text.encode() for name, text in texts.items()}
    files = {name: Content.of(source) for name, source in sources.items()}
    return Parcel("model", files, is_model_file, storage.METADATA_FILE)


def _write_texts(folder: Path, repo_id: str, sets: Sequence[str]) -> dict[str, str]:
    """Returns the record of a model, which `build_teacher` has read, and its card."""
    path = folder / storage.METADATA_FILE
    metadata = json.loads(path.read_text(encoding="utf-8"))
    if sets:
        metadata["provenance"] = {**metadata["provenance"], "sets": list(sets)}
    try:
        card = render_teacher_card(metadata, repo_id)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is incomplete ({error!r}): save the model again") from error
    texts = {storage.METADATA_FILE: storage.dump_metadata(metadata), storage.CARD_FILE: card}
    if any(blot_tokens(text) != text for text in texts.values()):
        raise InputError(f"{path} holds what looks like an access token: remove it, and revoke the token")
    return texts


def save_student(
    name: str,
    distilled: DistilledSet,
    folder: str | Path,
    source: dict[str, Any],
    seed: int = 0,
    device: torch.device | str = "cpu",
    **model_args: Any,
) -> nn.Module:
    """Pre-trains a student on a set by the set's own recipe, and writes it in timm's layout with a card.

    Args:
        name: A timm model name.
        distilled: The set.
        folder: Where to; what is there is kept.
        source: What the card says of the set: its `name`, and its `revision` when it is on the Hub.
        seed: Seed of the weights, of the order of the images and of their augmentation.
        device: Where it is trained; it comes back to the CPU.
        **model_args: Arguments of the model, such as `widths`.

    Returns:
        The student, in eval mode.

    Raises:
        InputError: The student cannot be built, or does not fit the set.
    """
    size, channels, _, side = distilled.images.shape
    with seeded(seed, "published student"):
        student = build_student(
            name, num_targets=distilled.targets.shape[1], in_chans=channels, image_size=side, **model_args
        )
        # Within the seed for the sake of dropout, which draws from the global generator.
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
    # A teacher is frozen, and a student is there to be trained on.
    return student.requires_grad_(True)
