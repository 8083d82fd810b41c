"""The linter of a folder: a distilled set, a teacher, or a run that holds both."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssdd_hub.errors import InputError
from ssdd_hub.plain_files import find_irregular
from ssdd_hub.plain_yaml import load_plain_yaml
from ssdd_hub.record import METADATA_FILE, read_unchecked, section
from ssdd_hub.record_schema import find_misfits
from ssdd_hub.runs.own_runs import LARGEST_CONFIG, is_own_run
from ssdd_hub.sets.check import PICKLES, Finding, check_folder, find_unusable

CONFIG_FILE, MODEL_FILE = "config.yaml", "config.json"


def check_place(folder: str | Path) -> list[Finding]:
    """Checks an untrusted folder by what it holds: a set, a teacher or student in timm's layout, or a run.

    Nothing of it is run, and no link in it is followed.

    Returns:
        What was found, errors first; of a run, places are relative to its folder.
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
        return "tensors" in read_unchecked(folder)
    except InputError:
        return False


def _check_model(folder: Path) -> Iterator[Finding]:
    # Imported here, since sets are checked where timm is not installed.
    from ssdd_hub.models.stored_models import find_config_problems
    from ssdd_hub.teachers.folder import check_weights

    names = sorted(path.name for path in folder.iterdir())
    irregular = {name: problem for name in names if (problem := find_irregular(folder, name))}
    yield from (Finding("error", name, problem) for name, problem in irregular.items())
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLES]
    text = "a file of this kind may run code when it is loaded: use safetensors"
    yield from (Finding("warning", name, text) for name in pickles)
    if irregular:
        return
    yield from (Finding("error", MODEL_FILE, problem) for problem in find_config_problems(folder / MODEL_FILE))
    if not (folder / METADATA_FILE).is_file():
        yield Finding("warning", METADATA_FILE, "is missing: nothing tells how the model was made")
        return
    try:
        record = read_unchecked(folder)
    except InputError as error:
        yield Finding("error", METADATA_FILE, str(error))
        return
    misfits = find_misfits(record, of_model=True)
    yield from (Finding("error", METADATA_FILE, problem) for problem in misfits)
    try:
        if not misfits:
            check_weights(folder, record)
    except InputError as error:
        yield Finding("error", "model.safetensors", str(error))
    stated = {**section(record, "provenance"), "teacher": section(record, "teacher")}
    yield from find_unusable(METADATA_FILE, stated)


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
    yield from find_unusable(path.name, {"settings": config, "seed": config.get("seed", 0)})
