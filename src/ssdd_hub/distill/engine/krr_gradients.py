"""The loss of a kernel regression on student features and its gradients, in parts that fit the memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssdd_hub.distill.engine.cuda_graphs import SideStream
from ssdd_hub.distill.engine.memory import MicroBatches
from ssdd_hub.distill.engine.ridge_solve import solve_ridge
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.krr import Outer, Regression, Ridge, linear_kernel
from ssdd_hub.distill.pairs import Pairs

Form = tuple[float | Ridge, Outer]
"""The form of the regression, and the loss of its predictions."""


def gradients_by_parts(
    features: Callable[[Tensor], Tensor],
    pairs: Pairs,
    real: Pairs,
    form: Form,
    parts: MicroBatches,
    dtype: torch.dtype,
    watch: Stopwatch,
    side: SideStream,
) -> tuple[Tensor, ...]:
    """Returns the loss of `Engine.krr_gradients` and its gradients, with the kernel in a type `dtype`.

    `features` maps images to student features `(n, F)` in eval mode, where no image depends on another.
    """
    images = [part.requires_grad_() for part in parts.split(pairs.images.detach())]
    targets = pairs.targets.detach().requires_grad_()
    with watch.part("distilled features"), torch.set_grad_enabled(not parts.recompute):
        kept = [features(part) for part in images]
    # The factorisation of the kernel leaves most of a GPU idle, which these features fill.
    with watch.part("real features"), side.use():
        real_features = torch.cat([features(part) for part in parts.split(real.images)])
    with watch.part("regression"), torch.autocast(targets.device.type, enabled=False):
        distilled_features = torch.cat([part.detach() for part in kept]).requires_grad_()
        ridge, outer = form
        fitted = _fit(distilled_features, targets, ridge, dtype)
        side.join()
        loss = _loss(fitted, real_features, real.targets, outer, dtype)
        gradient, *others = torch.autograd.grad(loss, [distilled_features, targets, *learned_of(outer)])
    with watch.part("backward"):
        # The gradient in each image needs the features of all, so either the graph of each part is kept until then,
        # or it is made again.
        images_gradient = [
            torch.autograd.grad(features(part) if parts.recompute else feature, part, out)[0]
            for part, feature, out in zip(images, kept, parts.split(gradient), strict=True)
        ]
    return loss.detach(), torch.cat(images_gradient), *others


def learned_of(outer: Outer) -> list[Tensor]:
    """Returns the parameters of a loss of predictions that are learned."""
    parameters = outer.parameters() if isinstance(outer, nn.Module) else ()
    return [parameter for parameter in parameters if parameter.requires_grad]


def _multiplies_exactly(features: Tensor, dtype: torch.dtype) -> bool:
    """Whether a GPU multiplies these features in bfloat16 and adds up in `dtype` without rounding a factor."""
    return features.is_cuda and features.dtype == torch.bfloat16 and dtype == torch.float32


def _fit(features: Tensor, targets: Tensor, ridge: float | Ridge, dtype: torch.dtype) -> Regression:
    kernel = narrow_kernel if _multiplies_exactly(features, dtype) else linear_kernel
    return Regression(features.to(dtype), targets.to(dtype), ridge, solve_ridge, kernel)


def _loss(
    regression: Regression, real_features: Tensor, real_targets: Tensor, outer: Outer, dtype: torch.dtype
) -> Tensor:
    # The narrow kernel takes narrow features as they are.
    narrow = _multiplies_exactly(real_features, dtype) and not regression.in_feature_space
    return regression.loss(real_features if narrow else real_features.to(dtype), real_targets.to(dtype), outer)


def narrow_kernel(left: Tensor, right: Tensor, constant: float = 1) -> Tensor:
    """Returns `krr.linear_kernel`, in the type of `right`, of features that bfloat16 holds exactly.

    A GPU multiplies them at the rate of bfloat16. Differentiable once.
    """
    products: Tensor = _NarrowProducts.apply(left, None if left is right else right, right.dtype)
    return products + constant


class _NarrowProducts(torch.autograd.Function):
    """`left @ right.T` of narrow factors, added up in a wide type; without `right`, `left @ left.T`."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor | None, wide: torch.dtype) -> Tensor:
        first = left.to(torch.bfloat16)
        second = first if right is None else right.to(torch.bfloat16)
        ctx.factors = first, second
        ctx.alike = right is None
        return torch.mm(first, second.T, out_dtype=wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right = ctx.factors
        if ctx.alike:
            return _wide_product(gradient + gradient.T, left), None, None
        to_left = _wide_product(gradient, right) if ctx.needs_input_grad[0] else None
        to_right = _wide_product(gradient.T, left) if ctx.needs_input_grad[1] else None
        return to_left, to_right, None


def _wide_product(wide: Tensor, narrow: Tensor) -> Tensor:
    """Returns the product of a wide matrix, split into a sum of two narrow ones, with a narrow matrix."""
    # Two bfloat16 hold a number to 16 bits; the large terms of a gradient cancel each other, so 8 would not do.
    most = wide.to(narrow.dtype)
    rest = (wide - most).to(narrow.dtype)
    return torch.mm(torch.cat([most, rest], 1), torch.cat([narrow, narrow]), out_dtype=wide.dtype)
