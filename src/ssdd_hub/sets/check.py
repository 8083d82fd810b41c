"""The linter of a distilled set: offline checks of an untrusted folder."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.hub import licences
from ssdd_hub.hub.download import is_set_file
from ssdd_hub.hub.markdown import one_line, paths_of_config, read_header
from ssdd_hub.plain_files import find_irregular, require_plain
from ssdd_hub.record import (
    CARD_FILE,
    LARGEST_CARD,
    METADATA_FILE,
    PREVIEW_FILE,
    REMEDY,
    SHARED_FILE,
    TRANSFORM_FILE,
    dump_metadata,
    read_metadata,
    read_unchecked,
    section,
    write_metadata,
)
from ssdd_hub.record_schema import find_misfits
from ssdd_hub.sets.card import DATA_FILES, render_dataset_card
from ssdd_hub.sets.folder import MISTAKES, StatedSet, measure_range
from ssdd_hub.sets.parquet import iter_tensors
from ssdd_hub.sets.tensor_checks import check_tensors
from ssdd_hub.statements import find_problems, of_labels
from ssdd_hub.text import printable, redact_tokens

PICKLES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
"""Endings of files that may run code when they are loaded."""
_CARD_FIELDS = ("license", "pretty_name", "size_categories", "task_categories", "tags", "configs")
_RECORDED = ("method", "settings", "seed", "source", "teacher", "use", "versions", "command")
_RANGE_TOLERANCE = 1e-5  # of a pixel in [0, 1]; sums in another order differ by less
_CLIP_TOLERANCE = 1e-3  # pixels at the very edge may fall to either side
_PNG = b"\x89PNG\r\n\x1a\n"


class Finding(NamedTuple):
    """A problem that the linter found.

    Attributes:
        level: `error`: the set cannot be published or trusted; `warning`: a reader will miss something.
        place: The file.
        text: What is wrong and what to do.
    """

    level: str
    place: str
    text: str

    def __str__(self) -> str:
        return printable(one_line(f"{self.level}: {self.place}: {self.text}"))


_error, _warning = partial(Finding, "error"), partial(Finding, "warning")


def check_folder(folder: str | Path) -> list[Finding]:
    """Checks the untrusted folder of a distilled set: files, record, data, card and licence; errors come first.

    Tensors are read piece by piece, so that a set need not fit into memory. No code of the folder is run.
    """
    folder = Path(folder)
    # Before anything is read, since a link may lead to a private file, and a device may give bytes without end.
    if links := list(_check_links(folder)):
        return links
    try:
        metadata = read_unchecked(folder)
    except InputError as error:
        return [_error(METADATA_FILE, str(error))]
    found = check_set(folder, metadata)
    if find_misfits(metadata):
        return found
    try:
        found += check_card(metadata, read_card(folder))
    except InputError as error:
        found.append(_error(CARD_FILE, str(error)))
    return sorted(found)


def check_set(folder: Path, metadata: Mapping[str, Any]) -> list[Finding]:
    """Checks a set but for its card; the record may be another than that of the folder, as when it is published."""
    if links := list(_check_links(folder)):
        return links
    found = list(_check_files(folder, metadata))
    if misfits := find_misfits(metadata):
        # Nothing else can be computed with; a token is looked for all the same.
        found += [_error(METADATA_FILE, f"{problem}: {REMEDY}") for problem in misfits]
        return sorted([*found, *_check_secrets(METADATA_FILE, json.dumps(metadata))])
    return sorted([*found, *_check_data(folder, metadata), *_check_record(metadata)])


def check_card(metadata: Mapping[str, Any], card: str) -> list[Finding]:
    """Checks a card, which need not be that of the folder, against the record of a set."""
    found = list(_check_secrets(CARD_FILE, card))
    try:
        header = read_header(card)
    except InputError as error:
        return sorted([*found, _error(CARD_FILE, str(error))])
    missing = [name for name in _CARD_FIELDS if not header.get(name)]
    if missing:
        found.append(_error(CARD_FILE, f"its YAML lacks {', '.join(missing)}: render the card again"))
    entries = header["configs"] if isinstance(header.get("configs"), list) else []
    if not any(isinstance(entry, dict) and entry.get("config_name") == "default" for entry in entries):
        found.append(_error(CARD_FILE, "its YAML has no default config: render the card again"))
    # All configs, since any of them can be made the one that is loaded by default. A pattern is compared and not
    # tried: an untrusted pattern may match anything, and take for ever.
    for path in (path for entry in entries for path in paths_of_config(entry)):
        if path != DATA_FILES:
            named = f"its YAML must name the data files {DATA_FILES} alone, got {repr(path)[:80]}"
            found.append(_error(CARD_FILE, f"{named}: render the card again"))
    recorded = str(section(metadata, "provenance").get("license") or licences.UNKNOWN)
    stated, rendered = licences.stated_licences(header), licences.stated_licences(licences.describe_licence(recorded))
    if set(licences.split_licences(stated)) != set(licences.split_licences(rendered)):
        freer = licences.is_non_commercial(recorded) and not licences.is_non_commercial(stated)
        text = f"its YAML says license {stated[:80]}, and {METADATA_FILE} {recorded[:80]}: render it again"
        found.append(Finding("error" if freer else "warning", CARD_FILE, text))
    return sorted(found)


def read_card(folder: Path) -> str:
    """Reads the card of a set; raises an `InputError` if it is missing, a link, too large, or no text."""
    path = folder / CARD_FILE
    require_plain(folder, [CARD_FILE])
    if not path.is_file():
        raise InputError("is missing: save the set again")
    if (size := path.stat().st_size) > LARGEST_CARD:
        raise InputError(f"must be of at most {LARGEST_CARD} bytes, got {size}")
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise InputError(f"is no text in UTF-8 ({error})") from error


def verify_folder(folder: Path) -> None:
    """Raises an `InputError` unless the tensors of a set are those that its record states."""
    for finding in _check_data(folder, read_metadata(folder)):
        raise InputError(f"{finding.place}: {finding.text}")


def _check_links(folder: Path) -> Iterator[Finding]:
    """Finds links and devices among the files of the set: what a link leads to would be published."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (name == "data" or is_set_file(name)) and (problem := find_irregular(folder, name)):
            yield _error(name, problem)


def _check_files(folder: Path, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in PICKLES:
            yield _error(name, "a file of this kind may run code when it is loaded: remove it")
        elif fnmatch(name, DATA_FILES) and not is_set_file(name):
            yield _error(name, "would be loaded as a part of the set: remove it")
        elif not is_set_file(name) and not name.startswith(".cache/"):
            yield _warning(name, "is no part of a distilled set, and will not be published")
    preview = folder / PREVIEW_FILE
    if not preview.is_file():
        yield _error(PREVIEW_FILE, "is missing: save the set again")
    elif np.fromfile(preview, np.uint8, len(_PNG)).tobytes() != _PNG:
        yield _error(PREVIEW_FILE, "is no PNG picture: save the set again")
    storage = metadata.get("storage")
    stated = {
        TRANSFORM_FILE: metadata.get("target_transform"),
        SHARED_FILE: storage.get("shared") if isinstance(storage, Mapping) else None,
    }
    for name, entry in stated.items():
        if not entry and (folder / name).exists():
            yield _error(name, "is there, and the record states none: remove it")


def _check_data(folder: Path, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Reads all values once: shapes, checksums, pixel space, labels, views, range, target transform."""
    try:
        stated = StatedSet.of(metadata)
        yield from _check_range(metadata, measure_range(_iter_pixels(folder, stated)))
        transform, width = stated.load_transform(folder), stated.shown["targets"].shape[1]
        if transform is not None and transform.width != width:
            raise InputError(f"{TRANSFORM_FILE} gives targets of width {transform.width}, the set's have {width}")
    except InputError as error:
        yield _error("data", str(error))


def _iter_pixels(folder: Path, stated: StatedSet) -> Iterator[Tensor]:
    """Yields the pixels of a set piece by piece, each of which `DistilledSet` would take."""
    decoder = stated.load_decoder(folder)
    for part in iter_tensors(folder, stated.tensors, stated.shown):
        tensors = decoder({name: torch.from_numpy(values) for name, values in part.items()})
        check_tensors(tensors, decoder.pixel_space, stated.label_names)
        yield decoder.pixel_space.denormalise(tensors["images"])


def _check_range(metadata: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[Finding]:
    least, greatest = metadata["pixel_range"]
    low, high = measured["pixel_range"]
    clipped, share = metadata["clip_fraction"], measured["clip_fraction"]
    # `not <=` instead of `>`, since NaN compares as false.
    if not max(abs(least - low), abs(greatest - high)) <= _RANGE_TOLERANCE * max(1.0, abs(low), abs(high)):
        found = f"they are from {low:g} to {high:g} in its pixel space: the space or the range is wrong"
        yield _error(METADATA_FILE, f"states pixels from {least:g} to {greatest:g}, and {found}")
    if not abs(clipped - share) <= _CLIP_TOLERANCE:
        yield _error(METADATA_FILE, f"states the clip_fraction {clipped:g}, and it is {share:g}")


def _check_record(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    provenance = section(metadata, "provenance")
    yield from find_unusable(METADATA_FILE, provenance)
    idle = {"teacher"} if of_labels(provenance) else set()
    missing = [name for name in _RECORDED if name not in idle and provenance.get(name) in (None, "", {}, [])]
    if missing:
        yield _warning(METADATA_FILE, f"does not record {', '.join(missing)}")
    if not provenance.get("scores"):
        yield _warning(METADATA_FILE, "records no scores: evaluate the set, or pass their file")
    if licences.split_licences(str(provenance.get("license") or licences.UNKNOWN)) == [licences.UNKNOWN]:
        yield _warning(METADATA_FILE, "the licence is unknown: state one if you may")
    try:
        check_set_licence(provenance)
    except InputError as error:
        yield _error(METADATA_FILE, str(error))
    # It must be written, read again and made into a card.
    try:
        if secrets := list(_check_secrets(METADATA_FILE, dump_metadata(metadata))):
            yield from secrets
            return
        with tempfile.TemporaryDirectory(prefix="ssdd-hub-check-") as scratch:
            write_metadata(Path(scratch), metadata)
        render_dataset_card(metadata, "owner/name")
    except MISTAKES as error:
        yield _error(METADATA_FILE, f"cannot be published ({error!r}): fetch or make the set again")


def find_unusable(place: str, stated: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds what a record states and must not be used, such as arguments that make timm load something else."""
    for problem in find_problems(stated):
        yield _error(place, f"states what nobody should use: {problem}")


def check_set_licence(provenance: Mapping[str, Any]) -> None:
    """Raises an `InputError` for a licence freer than those of source and teacher for which no reason is stated."""
    names = ["source", *([] if of_labels(provenance) else ["teacher"])]
    parts = {name: str(section(provenance, name).get("license") or licences.UNKNOWN) for name in names}
    licences.check_licence(str(provenance.get("license") or licences.UNKNOWN), parts, provenance.get("license_reason"))


def _check_secrets(place: str, text: str) -> Iterator[Finding]:
    if redact_tokens(text) != text:
        yield _error(place, "holds what looks like an access token: remove it, and revoke the token")
