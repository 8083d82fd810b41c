"""The folder of a teacher: weights in timm's layout, a record of how it was made, and a model card."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

from ssdd_hub.errors import InputError
from ssdd_hub.files import new_folder
from ssdd_hub.models.features import hash_tensors, shorten_error
from ssdd_hub.models.stored_models import WEIGHT_ENDINGS
from ssdd_hub.plain_files import require_modest_weights, require_plain
from ssdd_hub.record import (
    CARD_FILE,
    METADATA_FILE,
    check_schema,
    is_deeper,
    load_json,
    place_in_card,
    write_metadata,
)
from ssdd_hub.statements import find_problems
from ssdd_hub.teachers.card import render_teacher_card
from ssdd_hub.text import refuse_tokens, show

FORMAT_VERSION = 1
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_LARGEST_RECORD = 2**20  # bytes
_DEEPEST_RECORD = 20  # lists and objects inside each other
# What timm states of its own weights, which may not hold for those that are saved.
_STATED = ("tag", "description", "origin_url", "paper_name", "paper_ids", "notes")


def write_folder(
    folder: Path,
    backbone: nn.Module,
    data_config: Mapping[str, Any],
    license: str,
    metadata: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] = lambda new: None,
) -> None:
    """Writes a new folder that timm reads, which appears at once and whole, by renaming.

    `data_config` holds `mean`, `std`, `input_size` and `interpolation`; `metadata` holds `architecture`, `teacher`
    (`Teacher.identity()`) and `provenance`, for `ssdd_hub.json` and the card, neither of which is written without it.
    What `check` raises about the weights, in a place of their own, leaves no folder.
    """
    refuse_tokens({"the name of the folder, which the card names,": folder.name})
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
        check(new)
        if metadata is not None:
            write_metadata(new, {"format_version": FORMAT_VERSION, **metadata})
            (new / CARD_FILE).write_text(render_teacher_card(metadata, place_in_card(folder)), encoding="utf-8")


def read_record(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Returns what is recorded of `local-dir:FOLDER` or `hf-hub:OWNER/NAME`, optionally `@REVISION`.

    That is its name, its provenance and its facts, as of `Teacher.identity`. Without a record the name is a folder's
    last part or the name itself, and the others are empty.

    Raises:
        InputError: The record is damaged, too large, of an unknown format or of other weights, or the Hub cannot be
            reached for it.
    """
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        # The whole path would reveal names of the user's folders.
        require_plain(Path(place), [METADATA_FILE])
        return _read(Path(place) / METADATA_FILE) or (f"{kind}:{Path(place).resolve().name}", {}, {})
    if kind in ("hf-hub", "hf_hub"):
        path = _fetch(*place.partition("@")[::2])
        return name, *((_read(path) if path else None) or ("", {}, {}))[1:]
    return name, {}, {}


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


def _read(path: Path) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    """Returns the name, the provenance and the facts that a file records; None where there is no file."""
    if not path.is_file():
        return None
    advice = "fetch the teacher again, or remove this file to use the weights without it"
    if path.stat().st_size > _LARGEST_RECORD:
        raise InputError(f"{path} is larger than the {_LARGEST_RECORD} bytes that a record may have: {advice}")
    try:
        record = load_json(path.read_text(encoding="utf-8"))
        # What is no JSON text (NaN, half a surrogate pair) could not be written again after a long run.
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
        deep = is_deeper(record, _DEEPEST_RECORD)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no record of a teacher ({type(error).__name__}: {error}): {advice}") from error
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path} is no record of a teacher in format {FORMAT_VERSION}: {advice}")
    if deep:
        raise InputError(f"{path} holds lists or objects more than {_DEEPEST_RECORD} deep in each other: {advice}")
    # What a card could not format, at the end of a long run.
    check_schema(record, path, advice, of_model=True)
    # It would be part of the record of whatever is derived from the teacher, which nobody would accept.
    if stated := "; ".join(find_problems({**record["provenance"], "teacher": record["teacher"]})):
        raise InputError(f"{path} states what nobody should use ({stated}): {advice}")
    check_weights(path.parent, record)
    return record["teacher"]["name"], record["provenance"], record["teacher"]


def check_facts(name: str, recorded: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raises an `InputError` for facts of a loaded teacher that are not those of the record beside its weights."""
    # Through JSON, as the record: with lists for tuples.
    found = json.loads(json.dumps(facts))
    differing = [
        f"{key} is recorded as {show(recorded[key])}, {_CONFIG} states {show(value)}"
        for key, value in found.items()
        if recorded.get(key) not in (None, value)
    ]
    if differing:
        raise InputError(
            f"the teacher {name} is not the one that {METADATA_FILE} records ({'; '.join(differing)}): fetch it again "
            "or give --teacher.mean, --teacher.std and --teacher.input-size"
        )


def check_weights(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises an `InputError` for weights in safetensors that are not those of the record beside them.

    A teacher in double precision was hashed in it.
    """
    path, recorded = folder / _WEIGHTS, record["teacher"].get("weights_sha256")
    if recorded is None:
        return
    if not path.is_file():
        if others := sorted(each.name for each in folder.iterdir() if each.name.endswith(WEIGHT_ENDINGS)):
            raise InputError(
                f"{folder} must have its weights in {_WEIGHTS}, of which {METADATA_FILE} beside it states the sha256; "
                f"it has {others[0]}: fetch the teacher again"
            )
        return
    require_modest_weights(path)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({shorten_error(error)}): fetch the teacher again") from error
    if recorded not in (found := hash_tensors(weights), hash_tensors(weights, double=True)):
        raise InputError(
            f"{path} does not hold the weights that {METADATA_FILE} beside it states (teacher: weights_sha256 is "
            f"recorded as {recorded[:12]}..., it is {found[:12]}...): restore it, or give --teacher.backbone; without "
            "that record the weights are used as they are"
        )
