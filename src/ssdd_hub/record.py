"""`ssdd_hub.json`, the record beside a distilled set or a teacher: written, and read within limits."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssdd_hub.errors import InputError
from ssdd_hub.plain_files import require_plain
from ssdd_hub.record_schema import find_misfits
from ssdd_hub.text import refuse_tokens

FORMAT_VERSIONS = (1, 2)
"""Of records; 2 states how compact tensors are stored, and is written only where they are."""
METADATA_FILE = "ssdd_hub.json"
PARQUET_GLOB = "data/train-*.parquet"
PARQUET_FILE = "data/train-{:05d}-of-{:05d}.parquet"  # number and count of the files
PREVIEW_FILE = "preview.png"
CARD_FILE = "README.md"
TRANSFORM_FILE = "target_transform.safetensors"
SHARED_FILE = "shared.safetensors"
REMEDY = "fetch or make the set again"
MOST_BYTES = 8 * 2**20  # of a record
LARGEST_CARD = 2**20  # bytes
_MOST_LEVELS = 30  # of a record
_MOST_SHOWN = 5  # problems in a message


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Returns the text of `ssdd_hub.json`."""
    return json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Writes `ssdd_hub.json`; raises an `InputError` where `read_metadata` would not take it, or it has a token."""
    check_schema(metadata, METADATA_FILE, "correct it", of_model="tensors" not in metadata)
    refuse_tokens({METADATA_FILE: dump_metadata(metadata)})
    text = dump_metadata(metadata).encode()
    if len(text) > MOST_BYTES or is_deeper(metadata, _MOST_LEVELS):
        raise InputError(
            f"the record of a set must be of at most {MOST_BYTES} bytes, nested at most {_MOST_LEVELS} deep; got "
            f"{len(text)} bytes: leave something out of its provenance"
        )
    (folder / METADATA_FILE).write_bytes(text)


def check_schema(metadata: Mapping[str, Any], place: object, remedy: str = REMEDY, of_model: bool = False) -> None:
    """Raises an `InputError` that names the fields of a record whose values are not what the schema has."""
    if problems := find_misfits(metadata, of_model):
        more = f"; and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        kind, shown = "model" if of_model else "distilled set", "; ".join(problems[:_MOST_SHOWN])
        raise InputError(f"{place} is not the record of a {kind} ({shown}{more}): {remedy}")


def read_metadata(folder: Path, of_model: bool = False) -> dict[str, Any]:
    """Reads `ssdd_hub.json` of a set, or of a model.

    Raises:
        InputError: The folder or the file is missing, the file is a link or no file, damaged, too large or too deep,
            its format is not known here, or a field is not what the schema has.
    """
    metadata = read_unchecked(folder)
    check_schema(metadata, folder / METADATA_FILE, of_model=of_model)
    return metadata


def read_unchecked(folder: Path) -> dict[str, Any]:
    """Reads `ssdd_hub.json` as `read_metadata`, without looking at its fields."""
    path = folder / METADATA_FILE
    if not folder.is_dir():
        raise InputError(f"there is no distilled set at {folder}: the folder does not exist")
    require_plain(folder, [METADATA_FILE])
    if not path.is_file():
        own = folder / "distilled"
        hint = f"; the set of this run is {own}" if (own / METADATA_FILE).is_file() else ""
        raise InputError(f"{folder} is not a distilled set: it has no {METADATA_FILE}{hint}")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} must be of at most {MOST_BYTES} bytes, got {path.stat().st_size}: {REMEDY}")
    try:
        metadata = load_json(path.read_text(encoding="utf-8"))
        if is_deeper(metadata, _MOST_LEVELS):
            raise RecursionError
    except ValueError as error:
        raise InputError(f"{path} is damaged, it is not JSON ({error}): {REMEDY}") from error
    except RecursionError as error:
        raise InputError(f"{path} must be nested at most {_MOST_LEVELS} deep, and is deeper: {REMEDY}") from error
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version not in FORMAT_VERSIONS or isinstance(version, bool | float):
        known = " and ".join(map(str, FORMAT_VERSIONS))
        raise InputError(f"{path} states format_version {version!r}, this ssdd_hub reads {known}: upgrade ssdd_hub")
    return dict(metadata)


def load_json(text: str) -> Any:
    """Reads untrusted JSON; a `ValueError` for a name that stands twice in an object, of which readers take either."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"the name {twice[:80]!r} stands twice in an object")
    return found


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand inside each other in more than so many levels."""
    level = [value]
    for _ in range(levels + 1):
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return False
        level = [part for parts in level for part in (parts.values() if isinstance(parts, dict) else parts)]
    return True


def hash_json(value: Any) -> str:
    """Returns the sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def section(provenance: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns one part of the provenance; a bare value counts as its name."""
    value = provenance.get(name) or {}
    return value if isinstance(value, Mapping) else {"name": value}


def place_in_card(folder: Path) -> str:
    """Returns a folder as the code of its card names it, which runs where the card lies; `datasets` refuses `.`."""
    return f"../{folder.resolve().name}"


def shareable_name(name: str) -> str:
    """Returns the name of a dataset or model; of a local folder its last part, since paths tell of the machine."""
    place = name.removeprefix("local-dir:")
    path = Path(place).expanduser()
    return name.removesuffix(place) + path.resolve().name if path.exists() else name
