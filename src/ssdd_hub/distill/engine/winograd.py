"""3x3 convolutions by Winograd's F(4x4, 3x3): a quarter of the multiplications, all in products of matrices.

`Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A` for a filter `g` and a tile `d` of 6x6 pixels, which gives `Y` of 4x4. On the CPU it
is quicker than a direct convolution of many channels; in float32 it rounds by some 1e-5 of the results.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308, section 4.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# With fewer channels the transforms cost more than the products save.
MANY_CHANNELS = 128
TILE = 4
# Images at a time: the transformed tiles, 36 numbers for 16 pixels, should stay in the caches.
PART = 32
# Bᵀ, G and Aᵀ, which interpolate polynomials at 0, 1, -1, 2, -2 and infinity.
_TO_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_TO_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_TO_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def use_winograd(device: torch.device, mixed_precision: str) -> bool:
    """Whether it is quicker than direct convolution: on the CPU, without mixed precision."""
    return device.type == "cpu" and mixed_precision == "no"


def is_supported(layer: nn.Module) -> bool:
    """Whether a layer is a 3x3 convolution of many channels that keeps the size."""
    return (
        # A subclass may change its weight before it convolves.
        type(layer) is nn.Conv2d
        and layer.kernel_size == (3, 3)
        and layer.padding == layer.stride == layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and min(layer.in_channels, layer.out_channels) >= MANY_CHANNELS
    )


def transformed_bytes(module: nn.Module) -> int:
    """Returns the bytes of the transformed filters of all supported convolutions of a module."""
    weights = [cast(Tensor, layer.weight) for layer in module.modules() if is_supported(layer)]
    return sum(weight.nbytes for weight in weights) * 36 // 9


class FrozenConvolution(nn.Module):
    """A convolution with fixed weights: its filters are transformed once, not in every pass."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        weight, adjoint = transform(layer.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.adjoint = nn.Parameter(adjoint, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `(n, C, h, w)` to `(n, O, h, w)`, in channels-last layout."""
        outputs: Tensor = convolve(maps, self.weight, self.adjoint)
        return outputs if self.bias is None else outputs + self.bias[:, None, None]


class TrainedConvolution(nn.Conv2d):
    """A convolution with all gradients."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs: Tensor = convolve(input, *transform(weight))
        return outputs if bias is None else outputs + bias[:, None, None]


def train_by_winograd(module: nn.Module) -> nn.Module:
    """Changes the convolutions that suit to Winograd's algorithm in place; names and parameters stay."""
    for layer in module.modules():
        if is_supported(layer):
            layer.__class__ = TrainedConvolution
    return module


def transform(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the transformed filters `(36, C, O)` of a weight `(O, C, 3, 3)`, differentiable, and the adjoint ones.

    The gradient of a convolution in its input is a convolution too, with the adjoint filters `(36, O, C)`: mirrored,
    inputs and outputs swapped.
    """
    matrix = _both_axes(_TO_FILTER, weight)
    width, channels = weight.shape[:2]
    filters = matrix @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    adjoint = matrix @ weight.detach().flip(2, 3).permute(2, 3, 0, 1).reshape(9, -1)
    return filters.view(36, channels, width), adjoint.view(36, width, channels)


@torch.library.custom_op("ssdd_hub::winograd", mutates_args=())
def convolve(maps: Tensor, filters: Tensor, adjoint: Tensor) -> Tensor:
    """Convolves maps `(n, C, h, w)`, padded by zeros, to `(n, O, h, w)` in channels-last layout.

    One operation for torch.compile, which leaves it as it is. Filters and adjoint are those of `transform`.
    """
    height, width = maps.shape[2:]
    rows, columns = -(-height // TILE), -(-width // TILE)
    outputs = maps.new_empty(len(maps), height, width, filters.shape[2])
    for images, place in zip(torch.split(maps, PART), torch.split(outputs, PART), strict=True):
        # The sum over channels, for each of the 36 positions in a tile: all of the multiplications.
        products = torch.bmm(_spread(images), filters)
        gathered = _both_axes(_TO_OUTPUT, maps) @ products.view(36, -1)
        tiles = gathered.view(TILE, TILE, len(images), rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        if (rows * TILE, columns * TILE) == (height, width):
            place.view(len(images), rows, TILE, columns, TILE, -1).copy_(tiles)
        else:
            place.copy_(tiles.reshape(len(images), rows * TILE, columns * TILE, -1)[:, :height, :width])
    return outputs.permute(0, 3, 1, 2)


@convolve.register_fake
def _shape(maps: Tensor, filters: Tensor, adjoint: Tensor) -> Tensor:
    count, _, height, width = maps.shape
    return maps.new_empty(count, height, width, filters.shape[2]).permute(0, 3, 1, 2)


@torch.library.custom_op("ssdd_hub::winograd_filters", mutates_args=())
def filter_gradient(gradient: Tensor, maps: Tensor) -> Tensor:
    """Returns the gradient in the transformed filters `(36, C, O)`, given that of the convolved maps.

    `Vᵀ dM` for the transformed tiles `V = Bᵀ d B` and the gradient of their products, `dM = A dY Aᵀ`.
    """
    from_output = _both_axes(_TO_OUTPUT, maps).T
    total = maps.new_zeros(36, maps.shape[1], gradient.shape[1])
    for images, part in zip(torch.split(maps, PART), torch.split(gradient, PART), strict=True):
        tiles = _tiles(part, TILE, before=0).reshape(TILE**2, -1)
        products = (from_output @ tiles).view(36, -1, gradient.shape[1])
        total.baddbmm_(_spread(images).transpose(1, 2), products)
    return total


@filter_gradient.register_fake
def _filter_shape(gradient: Tensor, maps: Tensor) -> Tensor:
    return maps.new_empty(36, maps.shape[1], gradient.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    maps, *filters = inputs
    # With fixed filters the maps are not needed, which would take most of the memory.
    ctx.save_for_backward(*filters, *([maps] if ctx.needs_input_grad[1] else []))


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
    filters, adjoint, *maps = ctx.saved_tensors
    return convolve(gradient, adjoint, filters), filter_gradient(gradient, *maps) if maps else None, None


convolve.register_autograd(_backward, setup_context=_save)


def _spread(maps: Tensor) -> Tensor:
    """Returns the transformed tiles of maps, `(36, tiles, C)`."""
    tiles = _tiles(maps, TILE + 2, before=1)
    return (_both_axes(_TO_INPUT, maps) @ tiles.reshape(36, -1)).view(36, -1, maps.shape[1])


def _tiles(maps: Tensor, size: int, before: int) -> Tensor:
    """Returns tiles of `size` pixels a side, one every `TILE` pixels, `(size, size, n, rows, columns, C)`, a view.

    The maps `(n, C, h, w)` get `before` zeros before the first row and column, and as many as needed after the last.
    """
    count, channels, height, width = maps.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    below, right = (size - TILE - before + TILE * many - side for many, side in ((rows, height), (columns, width)))
    padded = functional.pad(maps.permute(0, 2, 3, 1), (0, 0, before, right, before, below)).contiguous()
    image, row, column, _ = padded.stride()
    return padded.as_strided(
        (size, size, count, rows, columns, channels), (row, column, image, TILE * row, TILE * column, 1)
    )


def _both_axes(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """Returns the matrix that transforms a flattened tile along both axes: the Kronecker square."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).to(like)
