"""The inputs of a run, named by their content: recorded in its folder, so that it goes on with no others."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import InputError

_LOG = logging.getLogger(__name__)

INPUTS_FILE = "inputs.json"
FORMAT_VERSION = 1
_TITLES = {"source": "source images", "heldout": "held-out images", "teacher": "teacher"}
# Files of a run that hold nothing computed from its inputs.
_NOT_COMPUTED = {"config.yaml", "trackers", INPUTS_FILE}
_LARGEST_RECORD = 2**20  # bytes
_MEND = "choose another --output, or remove that folder to start afresh"

Facts = dict[str, Any]
Inputs = dict[str, Facts]


def fingerprint_labels(labels: Tensor | None) -> str | None:
    """Returns the sha256 of labels `(N,)`, int64; None for none."""
    return None if labels is None else hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()


def describe_bank(bank: ImageBank, labels: bool = False) -> Facts:
    """Returns what names images by their content and their order, as JSON.

    Args:
        bank: The images.
        labels: Whether the labels belong to it, which only scores depend on.
    """
    own = {"labels": fingerprint_labels(bank.labels)} if labels else {}
    return {"fingerprint": bank.fingerprint, "num_images": len(bank), **own}


def describe_images(source: ImageBank, heldout: ImageBank, labels: bool = False) -> Inputs:
    """Returns the images of a run as its inputs.

    Args:
        source: The source images.
        heldout: All held-out images, however many of them an evaluation draws.
        labels: As for `describe_bank`.
    """
    return {"source": describe_bank(source, labels), "heldout": describe_bank(heldout, labels)}


def deciding_facts(described: Mapping[str, Any]) -> Facts:
    """Returns all that a teacher's features depend on, of what `Teacher.describe` returns: not its name or licence."""
    return {name: fact for name, fact in described.items() if name not in ("name", "license")}


def check_inputs(run: Path, inputs: Inputs, is_main: bool = True, made: bool = False) -> Inputs:
    """Refuses inputs other than those that a run folder was made from; every process decides alike.

    Where the folder does not record an input, as those of earlier versions do not, what was made from it and lies
    there may tell; where nothing tells, a warning is logged.

    Args:
        run: The run folder; it is not changed.
        inputs: Facts of each input, as JSON.
        is_main: Whether this process reads the folder; all others are given what it reads.
        made: Whether this run has just made these inputs itself, so that only its record can speak against them.

    Returns:
        What is to be recorded.

    Raises:
        InputError: An input is another one than before, or than on the main process; or the record is damaged.
    """
    # As they are read back: with lists for tuples.
    mine: Inputs = json.loads(json.dumps(inputs))
    shares: list[tuple[Inputs, Inputs | str, Inputs, list[str]]] = _gather((mine, *_look(run, mine, is_main, made)))
    first, record, recorded_by_results, problems = shares[0]
    for number, (other, *_) in enumerate(shares):
        differences = [text for name in first for text in _differences(name, first[name], other[name])]
        if differences:
            raise InputError(
                f"process {number} has other inputs than process 0 ({'; '.join(differences)}; 'there' is process 0): "
                "give all machines the same files"
            )
    if isinstance(record, str):
        raise InputError(record)
    if problems:
        raise InputError(
            f"--output {run} holds a run with other inputs ({'; '.join(problems)}): restore what was there, {_MEND}"
        )
    unknown = [_TITLES.get(name, name) for name in mine if name not in record and name not in recorded_by_results]
    if is_main and unknown and not made and _has_results(run):
        _LOG.warning(
            "%s was begun by a version that did not record its inputs: whether these are the same %s could not be "
            "checked; they are recorded from now on. If they may have changed since it was begun, stop and %s",
            run,
            " and ".join(unknown),
            _MEND,
        )
    return {**record, **mine}


def dump_inputs(inputs: Inputs) -> dict[str, Any]:
    """Returns the content of `inputs.json`."""
    return {"format_version": FORMAT_VERSION, "inputs": inputs}


def _gather(value: Any) -> list[Any]:
    """Returns the value of each process, that of the main one first."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return [value] if alone else list(gather_object([value]))


def _look(run: Path, inputs: Inputs, is_main: bool, made: bool) -> tuple[Inputs | str, Inputs, list[str]]:
    """Returns the record, or what is wrong with it; what results tell of other inputs; and all that differs."""
    if not is_main:
        return {}, {}, []
    try:
        record = _read(run / INPUTS_FILE)
    except InputError as error:
        return str(error), {}, []
    told: Inputs = {}
    problems = [
        text for name, facts in inputs.items() if name in record for text in _differences(name, record[name], facts)
    ]
    for name, candidates, where in [] if made else _told_by_results(run):
        if name not in inputs or name in record:
            continue
        found = [
            _differences(name, f, inputs[name], common=True) for f in candidates if f.keys() & inputs[name].keys()
        ]
        if found:
            told[name] = inputs[name]
            if all(found):
                problems += [f"{text}, as {where} tells" for text in found[0]]
    return record, told, problems


def _read(path: Path) -> Inputs:
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > _LARGEST_RECORD:
            raise ValueError(f"it has more than {_LARGEST_RECORD} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"it is not of format {FORMAT_VERSION}")
        inputs = content.get("inputs")
        if not isinstance(inputs, dict) or not inputs or not all(isinstance(facts, dict) for facts in inputs.values()):
            raise ValueError("it names no inputs")
        strangers = sorted(inputs.keys() - _TITLES.keys())
        if strangers:
            raise ValueError(f"it names {', '.join(map(repr, strangers))[:200]}, which are no inputs of a run")
        # Every run that records its inputs begins with these.
        if not inputs.get("source"):
            raise ValueError("it is incomplete: it does not name the source images")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no record of the inputs of a run ({error or type(error).__name__}): restore it, {_MEND}"
        ) from error
    return inputs


def _told_by_results(run: Path) -> Iterator[tuple[str, list[Facts], str]]:
    """Yields an input, the facts of it of which some must hold, and the file that tells."""
    metadata = "ssdd_hub.json"
    made_set = _section(_json(run / "distilled" / metadata), "provenance")
    for name in ("source", "heldout"):
        yield name, [_section(made_set, name)], f"distilled/{metadata}"
    teacher = deciding_facts(_section(made_set, "teacher"))
    if _section(_section(made_set, "settings"), "distiller").get("precision") == "float64":
        # The hash covers the type, and the teacher of such a run was hashed in double precision.
        teacher.pop("weights_sha256", None)
    yield "teacher", [teacher], f"distilled/{metadata}"
    own = _json(run / "teacher" / metadata)
    yield "source", [_section(_section(own, "provenance"), "source")], f"teacher/{metadata}"
    # Its structure was recorded in training, where norms may be of another class.
    weights = {name: fact for name, fact in _section(own, "teacher").items() if name == "weights_sha256"}
    yield "teacher", [weights], f"teacher/{metadata}"
    if any((run / "checkpoints" / "distiller").glob("step-*")):
        # Features of all images were there before the first of these checkpoints.
        keys = [_section(_json(path), "key") for path in sorted(run.glob("features/*/index.json"))]
        yield "source", [{"fingerprint": key["images"]} for key in keys if "images" in key], "features/"
        single = [key for key in keys if key.get("dtype") == "torch.float32"]
        yield "teacher", [_section(key, "teacher") for key in single], "features/"


def _json(path: Path) -> Facts:
    """Returns the object in a file; an empty one where there is none, which then tells nothing."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _section(content: Facts, name: str) -> Facts:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _has_results(run: Path) -> bool:
    return run.exists() and any(
        path.name not in _NOT_COMPUTED and not path.name.startswith(".") for path in run.iterdir()
    )


def _differences(name: str, before: Facts, now: Facts, common: bool = False) -> list[str]:
    """Returns in words which facts of an input differ, of all facts or of those that are known on both sides."""
    facts = sorted(before.keys() & now.keys() if common else before.keys() | now.keys())
    return [
        f"{_TITLES.get(name, name)}: {fact} {_short(before.get(fact))} there, {_short(now.get(fact))} now"
        for fact in facts
        if before.get(fact) != now.get(fact)
    ]


def _short(value: Any) -> str:
    """Returns a value for a message, a hash by its beginning."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)
