"""What is kept on the device, and how the rest gets there: without the host waiting for either."""

import torch
from torch import Tensor

# Bytes of a tensor that is kept on a GPU as a whole.
RESIDENT = 2 * 2**30


def keep(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns a tensor on a GPU if it takes at most `RESIDENT` bytes, and as it is otherwise."""
    device = torch.device(device)
    return tensor.to(device) if device.type == "cuda" and tensor.nbytes <= RESIDENT else tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns a tensor on a device; the host goes on while it is copied, which needs pinned memory."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def take(rows: Tensor, indices: Tensor, device: torch.device | str) -> Tensor:
    """Returns rows of a tensor on a device, wherever the tensor is.

    Args:
        rows: `(N, ...)`, on the CPU or on the device.
        indices: `(n,)`, on the CPU.
        device: Where the rows are wanted.
    """
    if rows.device.type == "cpu":
        return send(rows[indices], device)
    return rows[send(indices, rows.device)]
