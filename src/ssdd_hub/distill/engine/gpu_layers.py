"""Layers in a form that torch.compile turns into fewer passes over a GPU's memory, with the same results.

On the CPU, where arithmetic takes the time, they are slower than the usual ones.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

# cuDNN's convolutions are slow on so few channels, which a matrix product is not.
FEW_CHANNELS = 4


def fuse_layers(module: nn.Module) -> nn.Module:
    """Changes the plain `nn.Sequential` blocks of a network in place, for compilation on a GPU; names stay."""
    for block in list(module.modules()):
        if type(block) is nn.Sequential:
            block.__class__ = QuickSequential
    return module


class QuickSequential(nn.Sequential):
    """An `nn.Sequential` with three shortcuts.

    * A bias before a batch norm in train mode changes only the running mean, so it is added there alone.
    * 2x2 average pooling is a mean over a view, which is fused with the layers around it.
    * A convolution of few channels is a matrix product with patches.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `(n, C, H, W)` through all layers."""
        for layer, norm in self._steps():
            if type(layer) is nn.Conv2d:
                maps = _convolve(layer, maps, layer.bias if norm is None else None)
                maps = maps if norm is None else _normalise(norm, maps, layer.bias)
            elif type(layer) is nn.AvgPool2d:
                maps = _average(layer, maps)
            else:
                maps = layer(maps)
        return maps

    def _steps(self) -> Iterator[tuple[nn.Module, nn.BatchNorm2d | None]]:
        """Yields the layers, each with the batch norm that follows it where a convolution's bias can move there."""
        skipped: nn.BatchNorm2d | None = None
        for layer, after in pairwise([*self, None]):
            if layer is skipped:
                continue
            skipped = None
            if type(layer) is nn.Conv2d and type(after) is nn.BatchNorm2d and _own_statistics(after):
                skipped = after
            yield layer, skipped


def _own_statistics(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm uses the statistics of its batch, and keeps moving averages of constant momentum."""
    return norm.training and norm.track_running_stats and norm.affine and norm.momentum is not None


def _normalise(norm: nn.BatchNorm2d, maps: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the norm, in train mode, of maps to which the bias has not been added."""
    if bias is None:
        normalised: Tensor = norm(maps)
        return normalised
    mean = cast(Tensor, norm.running_mean)
    running = mean - bias.detach()
    # The bias gets a gradient of 0, its true one, rather than none: optimisers decay only weights with a gradient.
    shift = norm.bias + 0 * bias
    constants: Any = True, norm.momentum, norm.eps
    maps = functional.batch_norm(maps, running, norm.running_var, norm.weight, shift, *constants)
    mean.copy_(running + bias.detach())
    cast(Tensor, norm.num_batches_tracked).add_(1)
    return maps


def _average(layer: nn.AvgPool2d, maps: Tensor) -> Tensor:
    halves = layer.kernel_size == layer.stride == 2 and layer.padding == 0 and layer.divisor_override is None
    if not (halves and maps.shape[2] % 2 == maps.shape[3] % 2 == 0):
        pooled: Tensor = layer(maps)
        return pooled
    count, width, height, side = maps.shape
    mean: Tensor = maps.reshape(count, width, height // 2, 2, side // 2, 2).mean((3, 5))
    return mean


def _convolve(layer: nn.Conv2d, maps: Tensor, bias: Tensor | None) -> Tensor:
    reach = layer.padding[0]
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not (
        plain
        and layer.in_channels <= FEW_CHANNELS
        and isinstance(reach, int)
        and layer.padding == (reach, reach)
        and layer.kernel_size == (2 * reach + 1, 2 * reach + 1)
    ):
        usual: Tensor = layer._conv_forward(maps, layer.weight, bias)
        return usual
    side = 2 * reach + 1
    padded = functional.pad(maps, (reach,) * 4)
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)  # (n, C, H, W, side, side)
    patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(3)
    weight = layer.weight.flatten(1)
    # Tensor cores need multiples of eight.
    missing = -weight.shape[1] % 8
    weight, patches = functional.pad(weight, (0, missing)), functional.pad(patches, (0, missing))
    convolved: Tensor = functional.linear(patches, weight).permute(0, 3, 1, 2)
    # Added by itself, the bias is fused with what follows, and costs nothing.
    return convolved if bias is None else (convolved + bias[:, None, None]).to(convolved.dtype)
