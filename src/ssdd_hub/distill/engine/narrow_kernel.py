"""The linear kernel of half-precision features on a GPU: factors in their narrow type, sums in a wide one."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssdd_hub.distill.krr import linear_kernel


def narrow_kernel(left: Tensor, right: Tensor, exact_in: torch.dtype) -> Tensor:
    """Returns `krr.linear_kernel` of features that a narrower type holds exactly; differentiable once on a GPU.

    A GPU multiplies them at the rate of the narrow type; the result has the type of `right`.

    Args:
        left: `(n, F)`.
        right: `(m, F)`.
        exact_in: A type that holds both without rounding: bfloat16 where a network computed in it.
    """
    if not left.is_cuda:
        return linear_kernel(left, right)
    products: Tensor = _NarrowProducts.apply(left, None if left is right else right, exact_in, right.dtype)
    return products + 1


class _NarrowProducts(torch.autograd.Function):
    """`left @ right.T` of factors that a narrower type holds exactly, added up in a wider one; no `right`: `left`."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor | None, narrow: torch.dtype, wide: torch.dtype) -> Tensor:
        first = left.to(narrow)
        second = first if right is None else right.to(narrow)
        ctx.factors = first, second
        ctx.alike = right is None
        return torch.mm(first, second.T, out_dtype=wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        left, right = ctx.factors
        if ctx.alike:
            return _wide_product(gradient + gradient.T, left), None, None, None
        to_left = _wide_product(gradient, right) if ctx.needs_input_grad[0] else None
        to_right = _wide_product(gradient.T, left) if ctx.needs_input_grad[1] else None
        return to_left, to_right, None, None


def _wide_product(wide: Tensor, narrow: Tensor) -> Tensor:
    """Returns the product of a matrix in full precision, as the sum of two narrow ones, with a narrow matrix."""
    # Two narrow numbers hold one to 16 bits; the large terms of a gradient cancel each other, so 8 would not do.
    most = wide.to(narrow.dtype)
    rest = (wide - most).to(narrow.dtype)
    return torch.mm(torch.cat([most, rest], 1), torch.cat([narrow, narrow]), out_dtype=wide.dtype)
