"""The linear kernel of bfloat16 features on a GPU: narrow factors, wide sums."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssdd_hub.distill.krr import linear_kernel


def narrow_kernel(left: Tensor, right: Tensor, exact_in: torch.dtype) -> Tensor:
    """Returns `krr.linear_kernel` of features `(n, F)` and `(m, F)`, in the type of `right`; differentiable once.

    A GPU multiplies at the rate of `exact_in`, a narrower type that holds both without rounding.
    """
    if not left.is_cuda:
        return linear_kernel(left, right)
    products: Tensor = _NarrowProducts.apply(left, None if left is right else right, exact_in, right.dtype)
    return products + 1


class _NarrowProducts(torch.autograd.Function):
    """`left @ right.T` of narrow factors, added up in a wide type; without `right`, `left @ left.T`."""

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
    """Returns the product of a wide matrix, split into a sum of two narrow ones, with a narrow matrix."""
    # Two bfloat16 hold a number to 16 bits; the large terms of a gradient cancel each other, so 8 would not do.
    most = wide.to(narrow.dtype)
    rest = (wide - most).to(narrow.dtype)
    return torch.mm(torch.cat([most, rest], 1), torch.cat([narrow, narrow]), out_dtype=wide.dtype)
