"""The linter of a distilled set: all that a folder can be asked without the network, and without trusting it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from ssdd_hub import storage
from ssdd_hub.errors import InputError
from ssdd_hub.fetch import is_set_file
from ssdd_hub.hub import blot_tokens, printable
from ssdd_hub.licences import UNKNOWN, check_licence, is_non_commercial
from ssdd_hub.markdown import section
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.shards import iter_tensors
from ssdd_hub.target_transform import TargetTransform

PICKLES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
"""Endings of files that may run code when they are loaded."""
_LARGEST_CARD = 2**20  # bytes
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?(?:\n|\Z)", re.DOTALL)
_CARD_FIELDS = ("license", "pretty_name", "size_categories", "task_categories", "tags", "configs")
_RECORDED = ("method", "settings", "seed", "source", "teacher", "use", "versions", "command")
_RANGE_TOLERANCE = 1e-5  # of a pixel in [0, 1]; sums in another order differ by less


class Finding(NamedTuple):
    """Something that the linter found.

    Attributes:
        level: `error`: the set cannot be published or trusted; `warning`: a reader will miss something.
        place: The file.
        text: What is wrong and what to do.
    """

    level: str
    place: str
    text: str

    def __str__(self) -> str:
        return printable(f"{self.level}: {self.place}: {self.text}")


def check_folder(folder: str | Path) -> list[Finding]:
    """Checks the folder of a distilled set: files, record, data, card and licence.

    Tensors are read piece by piece, so that a set need not fit into memory. No code of the folder is run.

    Args:
        folder: The folder, of our making or of somebody else's.

    Returns:
        What was found, errors first; empty when all is well.
    """
    folder = Path(folder)
    try:
        metadata = storage.read_metadata(folder)
    except InputError as error:
        return [Finding("error", storage.METADATA_FILE, str(error))]
    found = check_set(folder, metadata)
    try:
        found += check_card(folder, metadata, read_card(folder))
    except InputError as error:
        found.append(Finding("error", storage.CARD_FILE, str(error)))
    return sorted(found)


def check_set(folder: Path, metadata: Mapping[str, Any]) -> list[Finding]:
    """Checks a set but for its card; the record may be another than that of the folder, as when it is published.

    Args:
        folder: The files.
        metadata: The record.
    """
    record = {storage.METADATA_FILE: storage.dump_metadata(metadata)}
    found = [*_check_files(folder), *_check_data(folder, metadata), *_check_record(metadata), *_check_secrets(record)]
    return sorted(found)


def check_card(folder: Path, metadata: Mapping[str, Any], card: str) -> list[Finding]:
    """Checks the card of a set against its record and its files.

    Args:
        folder: The files.
        metadata: The record.
        card: The card, which need not be that of the folder.
    """
    return sorted([*_check_header(folder, metadata, card), *_check_secrets({storage.CARD_FILE: card})])


def read_card(folder: Path) -> str:
    """Reads the card of a set.

    Raises:
        InputError: There is none, it is larger than a card has reason to be, or no text.
    """
    path = folder / storage.CARD_FILE
    if not path.is_file():
        raise InputError("is missing: save the set again")
    if path.stat().st_size > _LARGEST_CARD:
        raise InputError(f"must be of at most {_LARGEST_CARD} bytes, got {path.stat().st_size}")
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise InputError(f"is no text in UTF-8 ({error})") from error


def verify_folder(folder: Path) -> None:
    """Checks that the tensors of a set are those that its record states.

    Raises:
        InputError: They are not, or it is no set.
    """
    errors = list(_check_data(folder, storage.read_metadata(folder)))
    if errors:
        raise InputError(errors[0].text)


def _check_files(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.startswith(".cache/"):
            continue
        if path.suffix.lower() in PICKLES:
            yield Finding("error", name, "a file of this kind may run code when it is loaded: remove it")
        elif not is_set_file(name):
            yield Finding("warning", name, "is no part of a distilled set, and will not be published")
    if not (folder / storage.PREVIEW_FILE).is_file():
        yield Finding("error", storage.PREVIEW_FILE, "is missing: save the set again")


def _check_data(folder: Path, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Reads all values once: shapes, checksums, pixel space, range."""
    try:
        stated = storage.Stated.of(metadata)
        space = PixelSpace.from_dict(metadata["pixel_space"])
        low, high = np.inf, -np.inf
        for part in iter_tensors(folder, stated):
            if not all(np.isfinite(values).all() for values in part.values()):
                raise InputError("there are NaN or infinite values: no network can be trained on them")
            pixels = space.denormalise(torch.from_numpy(part["images"]))
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        if "target_transform" in metadata:
            TargetTransform.load(folder / storage.TRANSFORM_FILE, metadata["target_transform"]["sha256"])
        yield from _check_range(metadata, low, high)
    except InputError as error:
        yield Finding("error", "data", str(error))
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        yield Finding("error", storage.METADATA_FILE, f"is incomplete ({error!r}): fetch or make the set again")


def _check_range(metadata: Mapping[str, Any], low: float, high: float) -> Iterator[Finding]:
    stated, clipped = metadata["pixel_range"], metadata["clip_fraction"]
    if max(abs(stated[0] - low), abs(stated[1] - high)) > _RANGE_TOLERANCE * max(1.0, abs(low), abs(high)):
        yield Finding(
            "error",
            storage.METADATA_FILE,
            f"states pixels from {stated[0]:g} to {stated[1]:g}, and they are from {low:g} to {high:g} in its pixel "
            "space: the space or the range is wrong",
        )
    if not 0 <= clipped <= 1:
        yield Finding("error", storage.METADATA_FILE, f"clip_fraction must lie in [0, 1], got {clipped}")


def _check_record(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    provenance = metadata.get("provenance")
    if not isinstance(provenance, dict):
        yield Finding("error", storage.METADATA_FILE, "has no provenance, an object: fetch or make the set again")
        return
    scores = provenance.get("scores") or []
    if not isinstance(scores, list) or not all(isinstance(record, dict) for record in scores):
        yield Finding("error", storage.METADATA_FILE, "its scores must be a list of the records of a scores.json")
    missing = [name for name in _RECORDED if provenance.get(name) in (None, "", {}, [])]
    if missing:
        yield Finding("warning", storage.METADATA_FILE, f"does not record {', '.join(missing)}")
    if not scores:
        yield Finding("warning", storage.METADATA_FILE, "records no scores: evaluate the set, or pass their file")
    licence = str(provenance.get("license") or UNKNOWN)
    if licence == UNKNOWN:
        yield Finding("warning", storage.METADATA_FILE, "the licence is unknown: state one if you may")
    try:
        check_licence(licence, licence_parts(provenance), provenance.get("license_reason"))
    except InputError as error:
        yield Finding("error", storage.METADATA_FILE, str(error))


def licence_parts(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Returns the licences of what a set is derived from, by the name of the part."""
    parts = {name: section(provenance, name).get("license") for name in ("source", "teacher")}
    return {name: str(licence or UNKNOWN) for name, licence in parts.items()}


def _check_header(folder: Path, metadata: Mapping[str, Any], card: str) -> Iterator[Finding]:
    try:
        header = read_header(card)
    except InputError as error:
        yield Finding("error", storage.CARD_FILE, str(error))
        return
    missing = [name for name in _CARD_FIELDS if not header.get(name)]
    if missing:
        yield Finding("error", storage.CARD_FILE, f"its YAML lacks {', '.join(missing)}: render the card again")
    yield from _check_globs(folder, header.get("configs"))
    names = header.get("license")
    stated = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
    recorded = str(section(metadata, "provenance").get("license") or UNKNOWN)
    if is_non_commercial(recorded) and not is_non_commercial(f"{stated}, {header.get('license_name', '')}"):
        yield Finding(
            "error", storage.CARD_FILE, f"its YAML says license {stated}, and {storage.METADATA_FILE} {recorded}"
        )


def _check_globs(folder: Path, configs: Any) -> Iterator[Finding]:
    files = {path.relative_to(folder).as_posix() for path in folder.glob(storage.PARQUET_GLOB)}
    entries = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    default = next((entry for entry in entries if entry.get("config_name") == "default"), None)
    data = default.get("data_files") if default else None
    globs = [part.get("path") for part in data if isinstance(part, dict)] if isinstance(data, list) else []
    if not globs:
        yield Finding("error", storage.CARD_FILE, "its YAML names no data files of a default config")
    for glob in globs:
        if not isinstance(glob, str) or glob.startswith("/") or ".." in glob.split("/"):
            yield Finding("error", storage.CARD_FILE, f"its YAML names data files outside the repository: {glob!r}")
        elif not files or {path.relative_to(folder).as_posix() for path in folder.glob(glob)} != files:
            yield Finding("error", storage.CARD_FILE, f"its YAML names data files {glob!r}, which are not the set's")


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can make a few bytes into gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError("aliases are not taken")
        return super().compose_node(parent, index)


def read_header(card: str) -> dict[str, Any]:
    """Reads the YAML block of a card, as plain values and nothing else.

    Raises:
        InputError: The card has no such block, or one that is not a mapping of plain values.
    """
    try:
        block = _FRONT.match(card)
        header = yaml.load(block[1], _PlainLoader) if block else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"its YAML cannot be read ({line[:200]})") from error
    if not isinstance(header, dict):
        raise InputError("does not open with a block of YAML between two lines of ---")
    return header


def _check_secrets(texts: Mapping[str, str]) -> Iterator[Finding]:
    for name, text in texts.items():
        if blot_tokens(text) != text:
            yield Finding("error", name, "holds what looks like an access token: remove it, and revoke the token")
