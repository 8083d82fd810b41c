"""The inputs of a run, identified by content hashes: a run folder records them and refuses others."""

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
from ssdd_hub.record import METADATA_FILE, section

_LOG = logging.getLogger(__name__)

INPUTS_FILE = "inputs.json"
FORMAT_VERSION = 1
_TITLES = {
    "source": "source images",
    "heldout": "held-out images",
    "teacher": "teacher",
    "student": "weights of the students",
}
# Files of a run that hold nothing computed from its inputs.
_NOT_COMPUTED = {"config.yaml", "estimate.json", "trackers", INPUTS_FILE}
_LARGEST_RECORD = 2**20  # bytes
_MEND = "choose another --output, or remove that folder to start afresh"

Facts = Mapping[str, Any]
Inputs = Mapping[str, Facts]


def fingerprint_labels(labels: Tensor | None) -> str | None:
    """Returns the sha256 of labels `(N,)`, int64; None for none."""
    return None if labels is None else hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()


def describe_bank(bank: ImageBank, labels: bool = False) -> dict[str, Any]:
    """Returns what identifies images by content and order, as JSON; with the labels, which only scores depend on."""
    own = {"labels": fingerprint_labels(bank.labels)} if labels else {}
    return {"fingerprint": bank.fingerprint, "num_images": len(bank), **own}


def describe_images(source: ImageBank, heldout: ImageBank, labels: bool = False) -> dict[str, dict[str, Any]]:
    """Returns source and held-out images, of these all however many an evaluation draws, as inputs of a run."""
    return {"source": describe_bank(source, labels), "heldout": describe_bank(heldout, labels)}


def deciding_facts(described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all that a teacher's features depend on, of what `Teacher.describe` returns: not its name or licence."""
    return {name: fact for name, fact in described.items() if name not in ("name", "license")}


def check_inputs(run: Path, inputs: Inputs, is_main: bool = True, made: bool = False) -> dict[str, Any]:
    """Returns the content of `inputs.json`; every process finds the same in a folder that only the main one reads.

    Earlier versions did not record inputs: then results made from them are evidence, and a warning is logged where
    there is none.

    Args:
        run: The run folder; it is not changed.
        inputs: Facts of each input, as JSON.
        is_main: Whether this process reads the folder.
        made: Whether this run has just made these inputs itself, so that only its record can speak against them.

    Raises:
        InputError: An input is another one than before, or than on the main process; or the record is damaged.
    """
    # As they are read back: with lists for tuples.
    mine: Inputs = json.loads(json.dumps(inputs))
    shares = _gather((mine, *(_look(run, mine, made) if is_main else ({}, [], ""))))
    first, record, unknown, problem = shares[0]
    for number, (other, *_) in enumerate(shares):
        differences = [text for name in first for text in _differences(name, first[name], other[name])]
        if differences:
            raise InputError(
                f"process {number} has other inputs than process 0 ({'; '.join(differences)}; 'there' is process 0): "
                "give all machines the same files"
            )
    if problem:
        raise InputError(problem)
    if is_main and unknown:
        _LOG.warning(
            "%s was begun by a version that did not record its inputs: whether these are the same %s could not be "
            "checked; they are recorded from now on. If they may have changed since it was begun, stop and %s",
            run,
            " and ".join(unknown),
            _MEND,
        )
    return {"format_version": FORMAT_VERSION, "inputs": {**record, **mine}}


def _gather(value: tuple[Inputs, Inputs, list[str], str]) -> list[tuple[Inputs, Inputs, list[str], str]]:
    """Returns the value of each process, that of the main one first."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return [value] if alone else list(gather_object([value]))


def _look(run: Path, inputs: Inputs, made: bool) -> tuple[Inputs, list[str], str]:
    """Returns the record, the titles of inputs without any evidence, and what is wrong, in words."""
    try:
        record = _read(run / INPUTS_FILE)
    except InputError as error:
        return {}, [], str(error)
    known = set(record)
    problems = [text for name in inputs if name in record for text in _differences(name, record[name], inputs[name])]
    for name, candidates, where in [] if made else _evidence(run):
        if name not in inputs or name in record:
            continue
        found = [
            _differences(name, f, inputs[name], common=True) for f in candidates if f.keys() & inputs[name].keys()
        ]
        if found:
            known.add(name)
            # One of the candidates must be the same.
            problems += [f"{text}, as {where} tells" for text in found[0]] if all(found) else []
    told = f"--output {run} holds a run with other inputs ({'; '.join(problems)}): restore what was there, {_MEND}"
    has_results = run.exists() and any(p.name not in _NOT_COMPUTED and p.name[0] != "." for p in run.iterdir())
    unknown = [_TITLES.get(name, name) for name in inputs if name not in known and has_results and not made]
    return record, unknown, told if problems else ""


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
        others = sorted(inputs.keys() - _TITLES.keys())
        if others:
            raise ValueError(f"it names {', '.join(map(repr, others))[:200]}, which are no inputs of a run")
        # Every run that records its inputs begins with these.
        if not inputs.get("source"):
            raise ValueError("it is incomplete: it does not name the source images")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no record of the inputs of a run ({error or type(error).__name__}): restore it, {_MEND}"
        ) from error
    return inputs


def _evidence(run: Path) -> Iterator[tuple[str, list[Facts], str]]:
    """Yields from results the name of an input, facts of which one must hold, and the file that states them."""
    made_set = section(_json(run / "distilled" / METADATA_FILE), "provenance")
    for name in ("source", "heldout"):
        yield name, [section(made_set, name)], f"distilled/{METADATA_FILE}"
    teacher = deciding_facts(section(made_set, "teacher"))
    if section(section(made_set, "settings"), "distiller").get("precision") == "float64":
        # The hash covers the type, and the teacher of such a run was hashed in double precision.
        teacher.pop("weights_sha256", None)
    yield "teacher", [teacher], f"distilled/{METADATA_FILE}"
    own = _json(run / "teacher" / METADATA_FILE)
    yield "source", [section(section(own, "provenance"), "source")], f"teacher/{METADATA_FILE}"
    # Its structure was recorded in training, where norms may be of another class.
    weights = {name: fact for name, fact in section(own, "teacher").items() if name == "weights_sha256"}
    yield "teacher", [weights], f"teacher/{METADATA_FILE}"
    if any((run / "checkpoints" / "distiller").glob("step-*")):
        # Features of all images were there before the first of these checkpoints.
        keys = [section(_json(path), "key") for path in sorted(run.glob("features/*/index.json"))]
        yield "source", [{"fingerprint": key["images"]} for key in keys if "images" in key], "features/"
        single = [key for key in keys if key.get("dtype") == "torch.float32"]
        yield "teacher", [section(key, "teacher") for key in single], "features/"


def _json(path: Path) -> Facts:
    """Returns the object in a file; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


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
