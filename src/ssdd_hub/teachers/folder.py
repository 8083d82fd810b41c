"""The folder of a teacher: weights in timm's layout, a record of how it was made, and a model card."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.models import save_for_hf
from torch import nn

from ssdd_hub.errors import InputError
from ssdd_hub.files import hash_file, new_folder
from ssdd_hub.models.features import shorten_error
from ssdd_hub.plain_files import require_plain
from ssdd_hub.record import CARD_FILE, METADATA_FILE, is_deeper, write_metadata
from ssdd_hub.statements import find_problems
from ssdd_hub.teachers.card import render_teacher_card

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
_LARGEST_RECORD = 2**20  # bytes
_LARGEST_NUMBER = 1e300
_DEEPEST_RECORD = 20  # lists and objects inside each other
# What timm states of its own weights, which may not hold for those that are saved.
_STATED = ("tag", "description", "origin_url", "paper_name", "paper_ids", "notes")


def write_folder(
    folder: Path,
    backbone: nn.Module,
    data_config: Mapping[str, Any],
    license: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a new folder that timm reads, which appears at once and whole, by renaming.

    `data_config` holds `mean`, `std`, `input_size` and `interpolation`; `metadata` holds `architecture`, `teacher`
    (`Teacher.identity()`) and `provenance`, for `ssdd_hub.json` and the card, neither of which is written without it.
    """
    # safetensors refuses channels-last weights.
    backbone = deepcopy(backbone).cpu().to(memory_format=torch.contiguous_format)
    with new_folder(folder) as new:
        save_for_hf(
            backbone,
            new,
            safe_serialization=True,
            # timm's own evaluation then sees the whole image too, as a teacher does.
            data_config={**data_config, "crop_pct": 1.0, "crop_mode": "squash"},
            model_config={"pretrained_cfg": {**dict.fromkeys(_STATED), "license": license}},
        )
        if metadata is not None:
            digest = {"weights_file_sha256": hash_file(new / WEIGHTS_FILE)}
            write_metadata(new, {"format_version": FORMAT_VERSION, **metadata, **digest})
            (new / CARD_FILE).write_text(render_teacher_card(metadata, folder.name), encoding="utf-8")


def read_record(name: str) -> tuple[str, dict[str, Any]]:
    """Returns the recorded name and provenance of `local-dir:FOLDER` or `hf-hub:OWNER/NAME`, optionally `@REVISION`.

    Without a record the name is a folder's last part or the name itself, and the provenance is empty.

    Raises:
        InputError: The record is damaged, too large, or of an unknown format, or the Hub cannot be reached for it.
    """
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        # The whole path would reveal names of the user's folders.
        require_plain(Path(place), [METADATA_FILE])
        return _read(Path(place) / METADATA_FILE) or (f"{kind}:{Path(place).resolve().name}", {})
    if kind in ("hf-hub", "hf_hub"):
        path = _fetch(*place.partition("@")[::2])
        return name, ((_read(path) if path else None) or ("", {}))[1]
    return name, {}


def _fetch(repo_id: str, revision: str) -> Path | None:
    """Returns the record of a repository; None where it has none, or where only its weights are cached, offline."""
    try:
        return Path(hf_hub_download(repo_id, METADATA_FILE, revision=revision or None))
    except Exception as error:  # the Hub's client does not export all kinds that it raises
        # It raises "not cached" also when the Hub cannot be reached or refuses to answer.
        offline = error.__cause__ is None or isinstance(error.__cause__, OfflineModeIsEnabled)
        if isinstance(error, EntryNotFoundError) and (offline or not isinstance(error, LocalEntryNotFoundError)):
            return None
        raise InputError(
            f"{METADATA_FILE} of {repo_id}, which tells how the teacher was made, cannot be had "
            f"({shorten_error(error)}): try again, or set HF_HUB_OFFLINE=1 to use cached weights without it"
        ) from error


def _read(path: Path) -> tuple[str, dict[str, Any]] | None:
    """Returns the name and the provenance that a file records; None where there is no file."""
    if not path.is_file():
        return None
    advice = "fetch the teacher again, or remove this file to use the weights without it"
    if path.stat().st_size > _LARGEST_RECORD:
        raise InputError(f"{path} is larger than the {_LARGEST_RECORD} bytes that a record may have: {advice}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        # What is no JSON text (NaN, half a surrogate pair) could not be written again after a long run.
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
        version, teacher, provenance = (record[name] for name in ("format_version", "teacher", "provenance"))
        name = teacher["name"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no record of a teacher ({type(error).__name__}: {error}): {advice}") from error
    if version != FORMAT_VERSION or not isinstance(provenance, dict) or not isinstance(name, str):
        raise InputError(f"{path} is no record of a teacher in format {FORMAT_VERSION}: {advice}")
    if is_deeper(record, _DEEPEST_RECORD):
        raise InputError(f"{path} holds lists or objects more than {_DEEPEST_RECORD} deep in each other: {advice}")
    stated = "; ".join(find_problems({**provenance, "teacher": teacher}))
    # Weights of another ending, such as those of a repository that has no safetensors, are not the recorded file.
    weights, digest = path.parent / WEIGHTS_FILE, record.get("weights_file_sha256")
    if digest is not None and weights.is_file() and hash_file(weights) != digest:
        raise InputError(
            f"{weights} is damaged or of another teacher, its sha256 is not the one in {path.name}: fetch the teacher "
            "again, or remove its folder to have a run train it again"
        )
    # It would be part of the record of whatever is derived from the teacher, which nobody would accept.
    problem = _misfit(provenance) or (stated and f"states what nobody should use ({stated})")
    if problem:
        raise InputError(f"{path} {problem}: {advice}")
    return name, provenance


def _misfit(provenance: Mapping[str, Any]) -> str:
    """Returns what a card could not format, at the end of a long run."""
    scores = provenance.get("scores") or []
    if not isinstance(scores, list) or not all(isinstance(score, dict) for score in scores):
        return "must hold a list of objects as scores"
    numbers = {
        "seconds": [provenance.get("seconds")],
        **{f"{name} of scores": [score.get(name) for score in scores] for name in ("mean", "std")},
    }
    for name, values in numbers.items():
        for value in values:
            # A larger integer has no floating-point form.
            if value is not None and not (isinstance(value, int | float) and abs(value) < _LARGEST_NUMBER):
                return f"must hold a number as {name}, got {str(value)[:40]!r}"
    return ""
