"""Whether a device computes in bf16 by operations of its own."""

import os
import platform

import torch


def is_quick_in_bf16(device: torch.device) -> bool:
    """Whether PyTorch is quick in bf16 there; most laptops emulate it, and are several times quicker in float32.

    Where processes on several machines share a run, True on the CPU: they must compute alike, whatever the processor
    of each.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # torchrun and Accelerate set it.
        return int(os.environ.get("GROUP_WORLD_SIZE") or 1) > 1 or _has_operations()
    return True


def _has_operations() -> bool:
    """Whether this processor has operations for bf16."""
    # PyTorch's own compiler asks this before it uses oneDNN in bf16. It is true of all of AVX-512, which emulates bf16
    # but in its latest versions.
    known = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-untyped-call]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return bool(known and (not x86 or torch.cpu._is_avx512_bf16_supported()))
