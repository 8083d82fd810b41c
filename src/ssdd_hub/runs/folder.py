"""Run folders: settings, inputs, log and checkpoints of a run, and resuming it."""

import dataclasses
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path, is_temporary, remove_abandoned
from ssdd_hub.plain_files import require_plain, require_plain_tree
from ssdd_hub.plain_yaml import load_plain_yaml
from ssdd_hub.runs.checkpoints import Checkpoints
from ssdd_hub.runs.inputs import INPUTS_FILE, Inputs, check_inputs
from ssdd_hub.runs.lock import LOCK_FILES, FolderLock
from ssdd_hub.runs.own_runs import LARGEST_CONFIG, is_own_run, remember_run

_LOG = logging.getLogger(__name__)

# What may differ when a run goes on: it decides neither the teacher nor what is distilled, only how that is rounded at
# the end and scored.
FREE = (
    *("output", "storage", "evaluate", "student_training", "accuracy", "probe", "backbone_probe"),
    *("run.checkpoint_every", "run.log_every", "run.cache", "run.trackers", "run.threads"),
    "run.estimate",
    *("data.memory_budget_gb", "data.cache", "data.follow_links", "targets.refresh"),
    *("teacher_training.checkpoint_every", "teacher_training.workers", "watch.every", "watch.probe"),
)
_CONFIG_FILE = "config.yaml"
ESTIMATE_FILE = "estimate.json"
# What a run reads or writes beside it: files; folders that may grow large; and folders of results.
_FILES = (INPUTS_FILE, ESTIMATE_FILE, "log.jsonl", "scores.json", "scores.md", "report.html")
_WORK_FOLDERS = ("features", "scores", "cells", "checkpoints", "references")
_RESULT_FOLDERS = ("distilled", "teacher", "pictures")


class RunLog:
    """A JSONL log of a run's stages, written by one process; without times, so that a repeated run writes the same."""

    def __init__(self, path: Path, enabled: bool = True, lock: FolderLock | None = None) -> None:
        self.path, self.enabled, self.lock = path, enabled, lock

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends records, each with its `stage` and `step`; raises an `InputError` where the run's folder is gone."""
        if self.enabled:
            if self.lock:
                self.lock.check()
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)

    def rewind(self, stage: str, step: int) -> None:
        """Drops what a resumed run will write again: the stage's records after `step`, and what is no whole record."""
        if self.enabled and self.path.exists():
            records, damaged = self._read()
            if damaged:
                _LOG.warning(
                    "%s: line(s) %s are no whole records, as after a kill or a full disk: they are left out",
                    self.path,
                    ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else ""),
                )
            kept = [record for record in records if record["stage"] != stage or record["step"] <= step]
            _write(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def read(self) -> list[dict[str, Any]]:
        """Returns all whole records."""
        return self._read()[0]

    def _read(self) -> tuple[list[dict[str, Any]], list[int]]:
        """Returns all whole records, and the numbers of the lines that hold none."""
        records, damaged = list[dict[str, Any]](), list[int]()
        content = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            try:
                record = json.loads(line.decode())
                if not (line.endswith(b"\n") and isinstance(record["stage"], str) and isinstance(record["step"], int)):
                    raise ValueError("it is torn")
                records.append(record)
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged.append(number)
        return records, damaged


class RunFolder:
    """The files of a run, in `--output`; starting a run again in its folder resumes it.

    The main process has the folder to itself from here on, until `close`, the end of the recipe or of the process.

    Args:
        path: The folder.
        config: The resolved settings.
        is_main: Whether this process writes.
        same_settings: Whether a run is only resumed with the settings that it began with, or with any of its recipe.
        defaults: The recipe's default settings, which a run that began before a setting existed is resumed with; old
            names in its `RENAMED` are understood.

    Attributes:
        goes_on: Whether a run was begun in the folder before.
        tell: Called with a line for the user.

    Raises:
        InputError: The folder holds something else, or a run with other settings, or another process uses it. Other
            inputs are refused by `start`.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        is_main: bool = True,
        same_settings: bool = True,
        defaults: Any = None,
    ) -> None:
        check = partial(_check_folder, path, config, same_settings, defaults)
        check()
        self._lock = FolderLock(path)
        if is_main:
            self._lock.acquire()
            # For a notebook, where neither the process nor a recipe ends.
            weakref.finalize(self, self._lock.release)
            # Again, since another run may have begun before the lock was taken.
            try:
                check()
            except InputError:
                self.close()
                raise
        self.path, self.config, self.is_main = path, config, is_main
        self.goes_on = (path / _CONFIG_FILE).exists()
        self.tell: Callable[[str], object] = lambda line: None
        self.estimate: dict[str, Any] | None = None
        self.log = RunLog(path / "log.jsonl", is_main, self._lock)
        self.teacher_checkpoints = Checkpoints(path / "checkpoints" / "teacher")
        self.checkpoints = Checkpoints(path / "checkpoints" / "distiller")

    def start(self, inputs: Inputs | None = None) -> None:
        """Writes settings, estimate and inputs, once no wrong setting can end the run any more; all processes call it.

        Args:
            inputs: What the run computes from, as `describe_images` returns it; None where everything in the folder
                is named by the content of its own inputs, or computed anew.

        Raises:
            InputError: The folder holds a run with other inputs; it is not changed.
        """
        record = check_inputs(self.path, inputs, self.is_main) if inputs else None
        if self.is_main:
            _remove_leftovers(self.path)
            # What `scores/` was called before.
            if (self.path / "cells").is_dir() and not (self.path / "scores").exists():
                (self.path / "cells").rename(self.path / "scores")
            # Before the settings, which hold the steps that it chose.
            if self.estimate:
                self.write_json(ESTIMATE_FILE, self.estimate)
            config = self.path / _CONFIG_FILE
            _write(config, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
            remember_run(config)
            self.tell(f"settings: {config}")
            # After the settings, without which the folder would be taken for no run.
            if record:
                self.write_json(INPUTS_FILE, record)

    def close(self) -> None:
        """Lets other processes use the folder; the end of a recipe and of the process do so too."""
        self._lock.release()

    def pin(self, inputs: Inputs) -> None:
        """Records what the run has just made and computes from, such as its own teacher; all processes call it.

        Raises:
            InputError: Another one is recorded.
        """
        record = check_inputs(self.path, inputs, self.is_main, made=True)
        if self.is_main:
            self.write_json(INPUTS_FILE, record)

    def write_json(self, name: str, content: Any) -> None:
        """Writes one JSON file of the run, atomically, a list of numbers in one line.

        Raises:
            InputError: The run's folder is gone.
        """
        self._lock.check()
        # JSON has no line breaks within text, so only the layout changes.
        text = json.dumps(content, indent=2)
        text = re.sub(r"\[\n([^\[\]{}\"]*)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
        _write(self.path / name, text + "\n")


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check_folder(path: Path, config: dict[str, Any], same_settings: bool, defaults: Any) -> None:
    require_folder("--output", path)
    _require_plain_run(path)
    if (path / _CONFIG_FILE).exists():
        _refuse_other_settings(path, config, same_settings, defaults)
    # A run that was killed while it began has left no more than these.
    elif path.exists() and any(
        entry not in (*LOCK_FILES, ESTIMATE_FILE) and not is_temporary(entry) for entry in os.listdir(path)
    ):
        raise InputError(f"--output {path} is not empty and holds no run: choose another folder")


def _remove_leftovers(path: Path) -> None:
    """Removes what killed processes were writing; no other process of this run is left, the lock says."""
    shared = [path, *path.glob("*"), *path.glob("features/*")]
    for folder in shared:
        remove_abandoned(folder)
    for folder in path.glob("checkpoints/*"):
        # safetensors names its temporary files after nobody.
        remove_abandoned(folder, owned=True)


def _require_plain_run(path: Path) -> None:
    """Refuses a run folder in which something that is read or written is a FIFO, a device or a link.

    Work folders may be links, as to a larger disk, in a run that the user began; untrusted ones may lead to anything.
    """
    require_plain(path, [_CONFIG_FILE, *_FILES, *sorted(LOCK_FILES)])
    linked = [name for name in _WORK_FOLDERS if (path / name).is_symlink() and (path / name).is_dir()]
    if linked and not is_own_run(path / _CONFIG_FILE):
        places = ", ".join(str(path / name) for name in linked)
        raise InputError(
            f"{places}: links of work folders are followed only in a run that you began here: put the folder itself "
            "there, or choose another --output"
        )
    require_plain(path, [name for name in (*_WORK_FOLDERS, *_RESULT_FOLDERS) if name not in linked])
    for name in (*_WORK_FOLDERS, *_RESULT_FOLDERS):
        require_plain_tree(path / name)


def _refuse_other_settings(path: Path, config: dict[str, Any], same_settings: bool, defaults: Any) -> None:
    file = path / _CONFIG_FILE
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has more than {LARGEST_CONFIG} bytes")
        stored = load_plain_yaml(file.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it holds no settings")
        _rename(stored, getattr(defaults, "RENAMED", {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}): choose another --output") from error
    if not same_settings:
        # Another recipe's settings have other names.
        defaults = None
        stored, config = dict.fromkeys(stored, "left out"), dict.fromkeys(config, "left out")
    differences = [
        f"{key}: {before!r} there, {now!r} now"
        for key, before, now in _differences(stored, config, defaults)
        if not f"{key}.".startswith(tuple(f"{free}." for free in FREE))
    ]
    if differences:
        raise InputError(
            f"--output {path} holds a run with other settings ({'; '.join(differences)}): choose another --output, or "
            "remove that folder to start afresh"
        )


def _rename(stored: dict[str, Any], renamed: Mapping[str, str]) -> None:
    """Gives settings and sections that are stored under an old dotted name their present one."""
    found = {}
    # A setting comes before the section that it was in.
    for old in sorted(renamed, key=len, reverse=True):
        *sections, name = old.split(".")
        holder = stored
        for section in sections:
            holder = holder.get(section) or {}
        if name in holder:
            found[renamed[old]] = holder.pop(name)
    for new, value in found.items():
        *sections, name = new.split(".")
        holder = stored
        for section in sections:
            holder = holder.setdefault(section, {})
        holder[name] = {**value, **(holder.get(name) or {})} if isinstance(value, dict) else value


def _differences(before: Any, now: Any, default: Any = None, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        # Only sections have defaults for what is absent: a mapping that is one setting means what it says.
        own = vars(default) if dataclasses.is_dataclass(default) else {}
        before = {**{name: _plain(value) for name, value in own.items() if name in now}, **before}
        nested = [
            _differences(before.get(name), now.get(name), own.get(name), f"{key}.{name}".lstrip("."))
            for name in sorted(before.keys() | now.keys(), key=str)
        ]
        return [difference for part in nested for difference in part]
    return [] if before == now else [(key, before, now)]


def _plain(value: Any) -> Any:
    """Returns the default of a setting or of a section as a file holds it."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def require_folder(option: str, path: Path) -> None:
    """Refuses a place that is no folder and cannot become one, because it is a file or inside of one."""
    found = next((place for place in (path, *path.absolute().parents) if place.exists()), path)
    if found.exists() and not found.is_dir():
        raise InputError(f"{option} {path} is {'' if found == path else 'inside '}a file: choose another folder")


def folder_name(name: str) -> str:
    """Returns the last part of a path or Hub id as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip(".-") or "run"
