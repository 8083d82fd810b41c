"""Whether a device computes in bf16 by operations of its own."""

import torch


def is_quick_in_bf16(device: torch.device) -> bool:
    """Whether PyTorch is quick in bf16 there; most laptops emulate it, and are several times quicker in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # PyTorch's own compiler asks the same before it uses oneDNN in bf16.
        return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]
    return True
