"""Compares a teacher with the one that a set records, in everything that its features depend on."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ssdd_hub import arguments
from ssdd_hub.errors import InputError
from ssdd_hub.models.features import hash_weights
from ssdd_hub.record import section
from ssdd_hub.runs.inputs import deciding_facts
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.statements import of_labels, stated_teacher
from ssdd_hub.teachers.teacher import Teacher, TeacherSettings, build_teacher

# Packages whose modules a teacher is made of: another version may describe the same structure in other words.
_BUILDERS = ("timm", "torch", "ssdd-hub")
UNCOMPARED = (
    "the structure of the teacher could not be compared with the recorded one: this is another version of timm, torch "
    "or ssdd-hub, or the record names none; its weights and all else that is recorded are the same"
)
"""The message where everything but the structure is the same, and the structure is unknown."""


class TeacherComparison(NamedTuple):
    """A teacher beside the recorded one."""

    differences: dict[str, str]  # the recorded and the present value, in words, by the fact of `Teacher.describe`
    uncompared: bool  # whether the structure differs under another version of the code, which proves nothing


def compare_teacher(provenance: Mapping[str, Any], teacher: Teacher) -> TeacherComparison:
    """Compares a teacher with a set's provenance; what that does not state is not compared.

    No teacher is that of class labels.
    """
    if of_labels(provenance):
        return TeacherComparison({"targets": "the targets are class labels, of no teacher"}, False)
    # Through JSON, as the record: with lists for tuples.
    present: dict[str, Any] = json.loads(json.dumps(deciding_facts(teacher.identity())))
    recorded = section(provenance, "teacher")
    differing = [name for name, fact in present.items() if recorded.get(name) not in (None, fact)]
    # The hash covers the type, and the teacher of a run in double precision was hashed in it.
    if "weights_sha256" in differing and recorded["weights_sha256"] == hash_weights(teacher.backbone, double=True):
        differing.remove("weights_sha256")
    uncompared = "structure_sha256" in differing and not _is_same_code(provenance)
    if uncompared:
        differing.remove("structure_sha256")
    texts = (f"{name} is recorded as {_short(recorded[name])}, it is {_short(present[name])}" for name in differing)
    return TeacherComparison(dict(zip(differing, texts, strict=True)), uncompared)


def load_recorded(provenance: Mapping[str, Any], folder: str) -> Teacher:
    """Loads a teacher from a folder in timm's layout, with features and sizes as a set's provenance states them.

    Raises:
        InputError: There is no such teacher, or it cannot be read like this.
    """
    settings = section(section(provenance, "settings"), "teacher")
    # The folder takes the place of the recorded weights.
    settings = {name: value for name, value in settings.items() if name not in ("backbone", "checkpoint")}
    stated = stated_teacher(settings)
    if stated is None:
        # It was trained by the run, or from a file of weights: the folder states how it is built.
        recorded = section(provenance, "teacher").get("features")
        stated = {} if recorded is None else {"features": recorded}
    try:
        building = TeacherSettings(**{"pretrained": True, **stated}).building()
        return build_teacher(f"local-dir:{folder}", **building)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the teacher in {folder} cannot be read as the set records it ({error}): fetch the set again, or leave "
            "the teacher out"
        ) from error


def _is_same_code(provenance: Mapping[str, Any]) -> bool:
    recorded, installed = section(provenance, "versions"), describe_versions()
    if recorded.get("timm") is None:
        return False
    # A build for another device, as in 2.9.1+cpu, is of the same code.
    pairs = [(recorded.get(name, installed.get(name)), installed.get(name)) for name in _BUILDERS]
    return all(str(was).partition("+")[0] == str(now).partition("+")[0] for was, now in pairs)


def _short(value: Any) -> str:
    """Returns a value for a message, a hash by its beginning."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else arguments.show(value)
