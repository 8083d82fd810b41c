"""The machine and the packages that a run's figures depend on."""

import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.precision import is_quick_in_bf16

PACKAGES = ("ssdd-hub", "torch", "timm", "lightly", "accelerate", "datasets")


def count_cpus() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_processes() -> int:
    """Returns the number of processes of this run on this machine; a `ValueError` where the launcher says none."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def describe_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """Returns what the figures of a run depend on besides its settings, and this process's peak memory."""
    cuda = device.type == "cuda"
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": count_cpus(),
        "processes": processes,
        "threads_per_process": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "bf16": is_quick_in_bf16(device),
        "peak_memory_gib": round(peak_memory() / 2**30, 2),
        "peak_device_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if cuda else None,
    }


def describe_versions() -> dict[str, str]:
    """Returns the versions of this package and of the installed packages that its results depend on."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = _version(name)
    return versions


_version = cache(version)  # which reads files each time


def require_memory(option: str, number: int, each: float, device: torch.device | str) -> None:
    """Raises an `InputError` that names an option, whose number of things of `each` bytes has no room on a device."""
    device = torch.device(device)
    total = total_memory(device)
    if number * each > total:
        raise InputError(
            f"{option} {number} needs at least {number * each / 2**30:.3g} GiB, and there are {total / 2**30:.3g} in "
            f"all ({device.type}): lower it"
        )


def total_memory(device: torch.device) -> int:
    """Returns the bytes of a GPU, or else of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def free_memory(device: torch.device) -> int:
    """Returns the free bytes of a GPU, or else of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def kept_bytes(forward: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """Returns the bytes that autograd keeps of a forward pass, weights included, each storage counted once."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # The result keeps the storages alive, so that no address is used twice.
        features = forward(images.detach().requires_grad_())
    del features
    return sum(kept.values())


def peak_memory() -> int:
    """Returns this process's peak memory in bytes; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    import resource

    # macOS counts bytes, others kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
