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
from torch.autograd.function import once_differentiable

from ssdd_hub.distill.engine.ridge_solve import solve_ridge


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


class Regression:
    """A kernel ridge regression fitted on the distilled pairs, which predicts targets of real images.

    `K_rs (K_ss + λI)⁻¹ Y_s` with `λ = ridge · trace(K_ss)`; the trace is detached and not divided by `M`. With more
    images than features the same is computed in the space of features, `Φ_r (Φ_sᵀΦ_s + λI)⁻¹ Φ_sᵀ Y_s`, where the
    system is smaller. Differentiable in every tensor argument, on a GPU once.

    Args:
        features: Student features of the distilled images, `(M, F)`, without the constant.
        targets: Targets of the distilled images, `(M, D)`.
        ridge: Regularisation relative to the trace of the kernel, at least 0.
        exact_in: A narrower type that holds the features without rounding, those of real images too: bfloat16 where a
            network computed in it. A GPU then multiplies them at the rate of that type, and adds up in theirs.

    Raises:
        ValueError: The shapes do not fit each other.
    """

    def __init__(
        self, features: Tensor, targets: Tensor, ridge: float = 1e-6, exact_in: torch.dtype | None = None
    ) -> None:
        if {features.ndim, targets.ndim} != {2} or len(features) != len(targets):
            raise ValueError(_misfit(features, targets))
        self.features, self.targets, self.exact_in = features, targets, exact_in
        self.in_feature_space = len(features) > features.shape[1] + 1
        if self.in_feature_space:
            longer = torch.cat([features, features.new_ones(len(features), 1)], 1)  # (M, F + 1)
            covariance = longer.T @ longer
            # It has the trace of the kernel.
            self.solution = solve_ridge(
                covariance, longer.T @ targets, ridge * covariance.detach().trace()
            )  # (F + 1, D)
        else:
            kernel = _kernel(features, features, exact_in)
            self.solution = solve_ridge(kernel, targets, ridge * kernel.detach().trace())  # (M, D)

    def predict(self, real_features: Tensor) -> Tensor:
        """Predicts targets `(B, D)`, in the dtype of the features, of real images.

        Args:
            real_features: Student features of the real images, `(B, F)`, without the constant.

        Raises:
            ValueError: Their width `F` differs from that of the distilled images.
        """
        if real_features.ndim != 2 or real_features.shape[1] != self.features.shape[1]:
            raise ValueError(_misfit(self.features, self.targets, real_features))
        if self.in_feature_space:
            return torch.addmm(self.solution[-1], real_features, self.solution[:-1])
        return _kernel(real_features, self.features, self.exact_in) @ self.solution

    def loss(self, real_features: Tensor, real_targets: Tensor) -> Tensor:
        """Returns the mean squared error, over `B` and `D`, of the predictions.

        Args:
            real_features: Student features of the real images, `(B, F)`.
            real_targets: Teacher features of the same real images, `(B, D)`.

        Returns:
            A scalar in the dtype of the features (float32 or float64).

        Raises:
            ValueError: The shapes do not fit each other.
        """
        prediction = self.predict(real_features)
        if prediction.shape != real_targets.shape:
            raise ValueError(
                f"real targets of shape {tuple(prediction.shape)} (B, D) are required, got {tuple(real_targets.shape)}"
            )
        return (prediction - real_targets).square().mean()


def predict(distilled_features: Tensor, targets: Tensor, real_features: Tensor, ridge: float = 1e-6) -> Tensor:
    """Returns the predictions `(B, D)` of `Regression`, in one call."""
    return Regression(distilled_features, targets, ridge).predict(real_features)


def outer_loss(
    distilled_features: Tensor, targets: Tensor, real_features: Tensor, real_targets: Tensor, ridge: float = 1e-6
) -> Tensor:
    """Returns the outer loss of KRR-ST, `Regression.loss`, in one call."""
    return Regression(distilled_features, targets, ridge).loss(real_features, real_targets)


def _misfit(*arrived: Tensor) -> str:
    shapes = ", ".join(str(tuple(part.shape)) for part in arrived)
    return f"distilled features (M, F), targets (M, D) and real features (B, F) are required, got {shapes}"


def _kernel(left: Tensor, right: Tensor, exact_in: torch.dtype | None) -> Tensor:
    if exact_in is None or not left.is_cuda:
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
