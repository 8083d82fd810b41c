"""Kernel ridge regression from a distilled set to real images: the outer objective of KRR-ST.

Letters, with these meanings in every file: `N` real images, `M` distilled images, `B` a batch of real images, `D`
target width, `F` student feature width, `P` students in the pool, `T` the age at which a student is renewed; `C, H, W`
as usual.

Source: Lee et al., "Self-Supervised Dataset Distillation for Transfer Learning", ICLR 2024, arXiv 2310.06511, the
outer problem of section 3; the constants follow the authors' released code.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def linear_kernel(left: Tensor, right: Tensor) -> Tensor:
    """Returns the inner products of features to which the constant 1 was appended.

    `[a, 1] [b, 1]ᵀ = a bᵀ + 1`, so the longer features are never materialised.

    Args:
        left: `(n, F)`.
        right: `(m, F)`.

    Returns:
        `(n, m)`.
    """
    return left @ right.T + 1


def predict(
    distilled_features: Tensor,
    targets: Tensor,
    real_features: Tensor,
    ridge: float = 1e-6,
    exact_in: torch.dtype | None = None,
) -> Tensor:
    """Predicts targets of real images by a kernel ridge regression fitted on the distilled pairs.

    `K_rs (K_ss + λI)⁻¹ Y_s` with `λ = ridge · trace(K_ss)`; the trace is detached and not divided by `M`. With more
    images than features the same is computed in the space of features, `Φ_r (Φ_sᵀΦ_s + λI)⁻¹ Φ_sᵀ Y_s`, where the
    system is smaller.

    Args:
        distilled_features: Student features of the distilled images, `(M, F)`, without the constant.
        targets: Targets of the distilled images, `(M, D)`.
        real_features: Student features of the real images, `(B, F)`, without the constant.
        ridge: Regularisation relative to the trace of the kernel, at least 0.
        exact_in: A narrower type that holds both features without rounding, bfloat16 where a network computed in it.
            A GPU then multiplies them at the rate of that type, and adds up in that of the arguments.

    Returns:
        Predictions `(B, D)`, in the dtype of the arguments.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    if (
        {distilled_features.ndim, targets.ndim, real_features.ndim} != {2}
        or distilled_features.shape[0] != targets.shape[0]
        or distilled_features.shape[1] != real_features.shape[1]
    ):
        raise ValueError(
            "distilled features (M, F), targets (M, D) and real features (B, F) are required, got "
            f"{tuple(distilled_features.shape)}, {tuple(targets.shape)} and {tuple(real_features.shape)}"
        )
    prediction: Tensor
    if len(distilled_features) > distilled_features.shape[1] + 1:
        longer = torch.cat([distilled_features, distilled_features.new_ones(len(targets), 1)], 1)  # (M, F + 1)
        covariance = longer.T @ longer
        # It has the trace of the kernel.
        weights = _solve(covariance, longer.T @ targets, ridge * covariance.detach().trace())  # (F + 1, D)
        prediction = torch.addmm(weights[-1], real_features, weights[:-1])
    else:
        k_ss = _kernel(distilled_features, distilled_features, exact_in)  # (M, M)
        k_rs = _kernel(real_features, distilled_features, exact_in)  # (B, M)
        prediction = k_rs @ _solve(k_ss, targets, ridge * k_ss.detach().trace())
    return prediction


def outer_loss(
    distilled_features: Tensor,
    targets: Tensor,
    real_features: Tensor,
    real_targets: Tensor,
    ridge: float = 1e-6,
    exact_in: torch.dtype | None = None,
) -> Tensor:
    """Returns the mean squared error, over `B` and `D`, of the regression on real images.

    Differentiable in every tensor argument, once; the distiller passes real features without a graph.

    Args:
        distilled_features: Student features of the distilled images, `(M, F)`; the constant 1 is appended here.
        targets: Targets of the distilled images, `(M, D)`.
        real_features: Student features of the real images, `(B, F)`.
        real_targets: Teacher features of the same real images, `(B, D)`.
        ridge: Regularisation relative to the trace of the kernel, at least 0.
        exact_in: See `predict`.

    Returns:
        A scalar in the dtype of the arguments (float32 or float64).

    Raises:
        ValueError: The shapes do not fit each other.
    """
    prediction = predict(distilled_features, targets, real_features, ridge, exact_in)
    if prediction.shape != real_targets.shape:
        raise ValueError(
            f"real targets of shape {tuple(prediction.shape)} (B, D) are required, got {tuple(real_targets.shape)}"
        )
    return (prediction - real_targets).square().mean()


def _kernel(left: Tensor, right: Tensor, exact_in: torch.dtype | None) -> Tensor:
    if exact_in is None or not left.is_cuda:
        return linear_kernel(left, right)
    products: Tensor = _NarrowProducts.apply(left, right, exact_in)
    return products + 1


def _solve(matrix: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
    solution: Tensor = _RidgeSolution.apply(matrix, right, penalty)
    return solution


class _RidgeSolution(torch.autograd.Function):
    """`(A + λI)⁻¹ B` of a symmetric `A`: one factorisation serves both directions, and the host never waits for it.

    LU with pivoting, since in float32 the rounding of `A` can exceed `λ`, and Cholesky would then fail.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, matrix: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
        system = matrix.clone()
        system.diagonal().add_(penalty)
        factors, pivots, _ = torch.linalg.lu_factor_ex(system)
        solution: Tensor = torch.linalg.lu_solve(factors, pivots, right)
        ctx.save_for_backward(factors, pivots, solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        factors, pivots, solution = ctx.saved_tensors
        adjoint = torch.linalg.lu_solve(factors, pivots, gradient)
        return -adjoint @ solution.T, adjoint, None


class _NarrowProducts(torch.autograd.Function):
    """`left @ right.T` of factors that a narrower type holds exactly, added up in their own type."""

    @staticmethod
    def forward(ctx: FunctionCtx, left: Tensor, right: Tensor, narrow: torch.dtype) -> Tensor:
        factors = left.to(narrow), right.to(narrow)
        ctx.save_for_backward(*factors)
        return torch.mm(factors[0], factors[1].T, out_dtype=left.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right = ctx.saved_tensors
        # Two narrow numbers hold a gradient to 16 bits, and its large terms cancel each other.
        most = gradient.to(left.dtype)
        parts = most, (gradient - most).to(left.dtype)
        wanted = ctx.needs_input_grad

        def through(factor: Tensor, transposed: bool) -> Tensor:
            first, second = (torch.mm(p.T if transposed else p, factor, out_dtype=gradient.dtype) for p in parts)
            return first + second

        return through(right, False) if wanted[0] else None, through(left, True) if wanted[1] else None, None
