"""The memory layout in which a network is trained."""

import torch
from torch import nn

# At least the channels that oneDNN computes at once: 8 with AVX2, 16 with AVX-512.
_BLOCK = 16


def quick_layout(network: nn.Module) -> torch.memory_format:
    """Returns channels last, which is quicker, and the usual layout where that is not safe on the CPU.

    There, the gradient of a strided 1x1 convolution of few input channels in channels last is wrong, and is written
    where other memory is: the oneDNN of torch 2.14 does it (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    unsafe = any(
        set(layer.kernel_size) == {1} and max(layer.stride) > 1 and layer.in_channels // layer.groups < _BLOCK
        for layer in convolutions
    )
    return torch.contiguous_format if unsafe else torch.channels_last
