"""The linter of a folder: a distilled set, a teacher, or a run that holds both."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssdd_hub.errors import InputError
from ssdd_hub.plain_files import find_irregular
from ssdd_hub.plain_yaml import load_plain_yaml
from ssdd_hub.record import METADATA_FILE, read_metadata, section
from ssdd_hub.runs.own_runs import LARGEST_CONFIG, is_own_run
from ssdd_hub.sets.check import PICKLES, Finding, check_folder
from ssdd_hub.statements import find_problems

CONFIG_FILE, MODEL_FILE = "config.yaml", "config.json"


def check_place(folder: str | Path) -> list[Finding]:
    """Checks a folder by what it holds: a set, a teacher or student in timm's layout, or a run.

    Args:
        folder: The folder, of our making or of somebody else's. Nothing of it is run, and no link in it is followed.

    Returns:
        What was found, errors first; empty when all is well. Of a run, places are seen from its folder.
    """
    folder = Path(folder)
    # By the data first, so that a file more does not make a set something else.
    if _is_set(folder):
        found = check_folder(folder)
        if (folder / MODEL_FILE).exists():
            found.append(Finding("error", MODEL_FILE, "is that of a model, and no part of a set: remove it"))
        return sorted(found)
    if (folder / MODEL_FILE).exists():
        return sorted(_check_model(folder))
    if (folder / CONFIG_FILE).exists():
        return sorted(_check_run(folder))
    return check_folder(folder)


def _is_set(folder: Path) -> bool:
    if (folder / "data").exists():
        return True
    try:
        return "tensors" in read_metadata(folder)
    except InputError:
        return False


def _check_model(folder: Path) -> Iterator[Finding]:
    # Imported here, since sets are checked where timm is not installed.
    from ssdd_hub.models.stored_models import find_config_problems

    names = sorted(path.name for path in folder.iterdir())
    irregular = {name: problem for name in names if (problem := find_irregular(folder, name))}
    yield from (Finding("error", name, problem) for name, problem in irregular.items())
    for name in names:
        if Path(name).suffix.lower() in PICKLES:
            yield Finding("warning", name, "a file of this kind may run code when it is loaded: use safetensors")
    if irregular:
        return
    for problem in find_config_problems(folder / MODEL_FILE):
        yield Finding("error", MODEL_FILE, problem)
    if not (folder / METADATA_FILE).is_file():
        yield Finding("warning", METADATA_FILE, "is missing: nothing tells how the model was made")
        return
    try:
        record = read_metadata(folder)
    except InputError as error:
        yield Finding("error", METADATA_FILE, str(error))
        return
    stated = {**section(record, "provenance"), "teacher": section(record, "teacher")}
    for problem in find_problems(stated):
        yield Finding("error", METADATA_FILE, f"states what nobody should use: {problem}")


def _check_run(folder: Path) -> Iterator[Finding]:
    """Checks the settings of a run, unless this user began it, and the set and the teacher that it holds."""
    if problem := find_irregular(folder, CONFIG_FILE):
        yield Finding("error", CONFIG_FILE, problem)
    elif not is_own_run(folder / CONFIG_FILE):
        yield from _check_config(folder / CONFIG_FILE)
    for name in ("distilled", "teacher"):
        if problem := find_irregular(folder, name):
            yield Finding("error", name, problem)
        elif (folder / name).is_dir():
            for finding in check_place(folder / name):
                yield finding._replace(place=f"{name}/{finding.place}")


def _check_config(path: Path) -> Iterator[Finding]:
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has more than {LARGEST_CONFIG} bytes")
        config: Any = load_plain_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no settings by name")
        json.dumps(config)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        yield Finding("error", path.name, f"is not that of a run ({str(error)[:200]})")
        return
    for problem in find_problems({"settings": config, "seed": config.get("seed", 0)}):
        yield Finding("error", path.name, f"states what nobody should use: {problem}")
