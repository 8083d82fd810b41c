"""What is recorded of a run: the machine, and everything that its distilled set depends on."""

import os
import platform
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

PACKAGES = ("ssdd-hub", "torch", "timm", "lightly", "accelerate", "datasets")


def describe_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """Returns what the figures of a run depend on besides its settings: processor, cores, threads, accelerator."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": processes,
        "threads_per_process": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
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
    settings["data"] = {**settings["data"], "name": _shareable_name(settings["data"]["name"])}
    teacher_facts = teacher.describe()
    if not config["teacher"]["pretrained"]:
        name = config["pretrain"]["objective"]
        teacher_facts["objective"] = {"name": name, "citation": OBJECTIVES[name].citation}
    return {
        "method": "krr-st",
        "settings": settings,
        "seed": config["seed"],
        "source": {**source, "name": _shareable_name(str(source["name"]))},
        "teacher": teacher_facts,
        "target_transform": transform.describe(),
        "student": config["student"],
        "student_pixel_space": student_space.to_dict(),
        "license": _license(source["license"], teacher.license),
        "versions": describe_versions(),
        "command": shlex.join(["accelerate", "launch", f"recipes/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def _shareable_name(name: str) -> str:
    """Returns a Hub id as it is, and of a local folder only its last part: a path means nothing elsewhere."""
    return Path(name).resolve().name if Path(name).exists() else name


def _license(*licenses: str) -> str:
    """Returns the licence of what is derived from several parts: theirs if they agree, and otherwise unknown."""
    return licenses[0] if len(set(licenses)) == 1 else "unknown"
