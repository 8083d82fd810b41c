"""Keeps small tensors on the GPU; copies the others asynchronously from pinned memory."""

import torch
from torch import Tensor

# Bytes that are kept on a GPU as a whole, and the share of its free memory that they may take.
RESIDENT = 2 * 2**30
SHARE = 0.25


def may_stay(num_bytes: int, device: torch.device | str) -> bool:
    """Whether a device is a GPU with room to keep so many bytes."""
    device = torch.device(device)
    return device.type == "cuda" and num_bytes <= min(RESIDENT, SHARE * torch.cuda.mem_get_info(device)[0])


def keep_on_device(tensor: Tensor, device: torch.device | str, copies: int = 1) -> Tensor:
    """Moves a tensor to a GPU that has room for `copies` of its size; returns it unchanged otherwise."""
    return tensor.to(device) if may_stay(tensor.nbytes * copies, device) else tensor


def copy_async(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copies a tensor to a device; the host does not wait, since the copy is from pinned memory."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def gather(rows: Tensor, indices: Tensor, device: torch.device | str) -> Tensor:
    """Returns on `device` the rows at `indices (n,)`, on the CPU, of `rows (N, ...)`, on the CPU or the device."""
    if rows.device.type == "cpu":
        return copy_async(rows[indices], device)
    return rows[copy_async(indices, rows.device)]
