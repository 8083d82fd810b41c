"""What is recorded of a run: the machine, and everything that its distilled set depends on."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ssdd_hub.objectives import OBJECTIVES
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.targets import TargetTransform
from ssdd_hub.teacher import Teacher

# At the start of a word of the command line, after `=` or `local-dir:`, or in quotes as in JSON.
_ABSOLUTE_FOLDER = re.compile(r"""(^|[=:"'])~?/(?!/)(?:[^"']*/)?(?=[^/"'])""")

PACKAGES = ("ssdd-hub", "torch", "timm", "lightly", "accelerate", "datasets")


def count_cpus() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """Returns what the figures of a run depend on besides its settings, and the memory that this process needed."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": count_cpus(),
        "processes": processes,
        "threads_per_process": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "peak_memory_gib": round(_peak_memory() / 2**30, 2),
        "peak_device_memory_gib": (
            round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None
        ),
    }


def describe_versions() -> dict[str, str]:
    """Returns the versions of this package and of those that its results depend on."""
    return {name: version(name) for name in PACKAGES}


def describe_run(
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    teacher: Teacher,
    transform: TargetTransform,
    student_space: PixelSpace,
) -> dict[str, Any]:
    """Returns the provenance of a distilled set, but for what only the end of the run knows.

    Args:
        config: The resolved settings.
        source: `ImageBank.source`.
        teacher: The teacher.
        transform: What makes targets of its features.
        student_space: The space in which networks pre-trained on the set are to see real images.
    """
    settings = {name: values for name, values in config.items() if name not in ("output", "run", "evaluate")}
    command = ["accelerate", "launch", f"recipes/{Path(sys.argv[0]).name}", *map(_without_folders, sys.argv[1:])]
    settings["run"] = {"mixed_precision": config["run"]["mixed_precision"]}
    settings["data"] = {**settings["data"], "name": _shareable_name(settings["data"]["name"])}
    teacher_facts = _without_folders(teacher.describe())
    if not config["teacher"]["pretrained"]:
        name = config["pretrain"]["objective"]
        teacher_facts["objective"] = {"name": name, "citation": OBJECTIVES[name].citation}
    return {
        "method": "krr-st",
        "settings": _without_folders(settings),
        "seed": config["seed"],
        "source": {**source, "name": _shareable_name(str(source["name"]))},
        "teacher": teacher_facts,
        "target_transform": transform.describe(),
        "student": _without_folders(config["student"]),
        "student_pixel_space": student_space.to_dict(),
        "license": _license(source["license"], teacher.license),
        "versions": describe_versions(),
        "command": shlex.join(command),
    }


def _peak_memory() -> int:
    """Returns the most memory, in bytes, that this process has held; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    # macOS counts bytes, others kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _shareable_name(name: str) -> str:
    """Returns a Hub id as it is, and of a local folder only its last part: a path means nothing elsewhere."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def _without_folders(value: Any) -> Any:
    """Returns JSON with absolute paths cut to their last part, since they tell of somebody's machine."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return _ABSOLUTE_FOLDER.sub(r"\1", value) if isinstance(value, str) else value


def _license(*licenses: str) -> str:
    """Returns the licence of what is derived from several parts: theirs if they agree, and otherwise unknown."""
    return licenses[0] if len(set(licenses)) == 1 else "unknown"
