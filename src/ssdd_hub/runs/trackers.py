"""Accelerate's trackers, such as TensorBoard: which are installed, what they are told of a run, and its scores."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from ssdd_hub.errors import InputError
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.text import first_line

PROJECT = "ssdd_hub"
"""The project of all runs, as trackers call it."""
_EXTRA = ("tensorboard", "trackio")  # of this package's extra `track`


def require_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that are not installed, which Accelerate would leave out without a word."""
    ready = {str(tracker) for tracker in get_available_trackers()}
    # Those that are no package of Accelerate's list were registered by the caller.
    missing = [name for name in dict.fromkeys(names) if name in LoggerType.list() and name not in ready]
    if missing:
        packages = dict.fromkeys("'ssdd-hub[track]'" if name in _EXTRA else name for name in missing)
        raise InputError(
            f"--run.trackers {', '.join(missing)}: not installed: pip install {' '.join(packages)}, or leave it out"
        )


def start_trackers(accelerator: Accelerator, run: RunFolder) -> None:
    """Tells the trackers that a run begins or goes on: its name, that of its folder, and its settings.

    Raises:
        InputError: A tracker cannot start, such as one that needs a login.
    """
    # What is told is that of all processes, and some trackers would make a run of each.
    if not accelerator.is_main_process:
        return
    name = run.path.resolve().name
    # TensorBoard's runs are their folders, which are below that of the run.
    own = {"trackio": {"name": name, "resume": "allow" if run.goes_on else "never"}, "wandb": {"name": name}}
    try:
        accelerator.init_trackers(PROJECT, dict(_flatten(run.config)), own)
    except Exception as error:  # each tracker raises its own kinds
        raise InputError(
            f"--run.trackers {', '.join(map(str, accelerator.log_with))} cannot start: {first_line(error)}: set it "
            "up, or leave it out"
        ) from error


def track_scores(accelerator: Accelerator, records: Iterable[Mapping[str, Any]], step: int = 0) -> None:
    """Tells the trackers the means of an evaluation, each by set, student, dataset, protocol and metric."""
    scores = {}
    for record in records:
        names = ("set", "student", "target", "protocol", "labels", "metric")
        place = "/".join(str(record[name]) for name in names if record.get(name) is not None)
        if record["mean"] is not None:
            scores[f"scores/{place}"] = record["mean"]
    accelerator.log(scores, step)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Yields settings by dotted name as what trackers take: numbers and texts."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else json.dumps(value)
