"""The memory layout in which a network is trained."""

import torch
from torch import nn

# At least the channels that oneDNN computes at once: 8 with AVX2, 16 with AVX-512.
_BLOCK = 16


def quick_layout(network: nn.Module, device: torch.device | str) -> torch.memory_format:
    """Returns channels last, which is quicker on a device, and the usual layout where that is not safe.

    On the CPU, the gradient of a strided 1x1 convolution of few input channels in channels last is wrong, and is
    written where other memory is: the oneDNN of torch 2.14 does it
    (https://github.com/uxlfoundation/oneDNN/issues/6035). It goes by the layout of the images, so these must be in the
    one of the network.
    """
    if torch.device(device).type != "cpu":
        return torch.channels_last
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    unsafe = any(
        set(layer.kernel_size) == {1} and max(layer.stride) > 1 and layer.in_channels // layer.groups < _BLOCK
        for layer in convolutions
    )
    return torch.contiguous_format if unsafe else torch.channels_last
