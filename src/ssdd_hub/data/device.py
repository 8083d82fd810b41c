"""Keeps small tensors on the GPU; copies the rest asynchronously from pinned memory."""

import torch
from torch import Tensor

# Bytes that are kept on a GPU as a whole, and the share of its free memory that they may take.
RESIDENT = 2 * 2**30
SHARE = 0.25


def may_stay(num_bytes: int, device: torch.device | str) -> bool:
    """Whether so many bytes may be kept on a device: a GPU with room for them."""
    device = torch.device(device)
    return device.type == "cuda" and num_bytes <= min(RESIDENT, SHARE * torch.cuda.mem_get_info(device)[0])


def keep(tensor: Tensor, device: torch.device | str, copies: int = 1) -> Tensor:
    """Returns a tensor on a GPU if so many of its size may stay there, and as it is otherwise."""
    return tensor.to(device) if may_stay(tensor.nbytes * copies, device) else tensor


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
