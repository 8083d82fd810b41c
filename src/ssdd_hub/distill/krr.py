"""Kernel ridge regression from a distilled set to real images: the outer objective of KRR-ST.

Letters, with these meanings in every file: `N` real images, `M` distilled images, `B` a batch of real images, `D`
target width, `F` student feature width, `P` students in the pool, `T` the age at which a student is renewed; `C, H, W`
as usual.

Source: Lee et al., "Self-Supervised Dataset Distillation for Transfer Learning", ICLR 2024, arXiv 2310.06511, the
outer problem of section 3; the constants follow the authors' released code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Solver = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes a symmetric matrix `A`, a right side `B` and a penalty `λ`; returns `(A + λI)⁻¹ B`."""
Kernel = Callable[[Tensor, Tensor, float], Tensor]
"""Takes features `(n, F)` and `(m, F)` and the constant of the kernel; returns their kernel `(n, m)`."""
Outer = Callable[[Tensor, Tensor], Tensor]
"""Takes predictions and targets of real images, both `(B, D)`; returns a scalar, a mean over the images."""


@dataclass(frozen=True)
class Ridge:
    """The form of a kernel ridge regression.

    Attributes:
        share: Regularisation `λ` relative to the trace of the kernel, at least 0.
        constant: Whether the constant 1 is appended to the features, so that 1 is added to the kernel.
        detached: Whether the trace counts as a constant when gradients are taken.
    """

    share: float = 1e-6
    constant: bool = True
    detached: bool = True


def solve_ridge(matrix: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
    """Returns `(A + λI)⁻¹ B` of a symmetric `A`: the reference solver, by LU with pivoting.

    Not by Cholesky: in float32 the rounding of `A` can exceed `λ`, and then it would fail.
    """
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    solution: Tensor = torch.linalg.solve(matrix + penalty * identity, right)
    return solution


def squared_error(prediction: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error over `B` and `D`."""
    return (prediction - targets).square().mean()


def linear_kernel(left: Tensor, right: Tensor, constant: float = 1) -> Tensor:
    """Returns the kernel `(n, m)` of features `(n, F)` and `(m, F)` to which a constant is appended, by its square."""
    # [a, 1] [b, 1]ᵀ = a bᵀ + 1, so the longer features are never materialised.
    return left @ right.T + constant


class Regression:
    """A kernel ridge regression fitted on the distilled pairs, which predicts targets of real images.

    `K_rs (K_ss + λI)⁻¹ Y_s` with `λ = ridge · trace(K_ss)`; by default the trace is detached, and it is not divided by
    `M`. With more images than features the same is computed in the space of features,
    `Φ_r (Φ_sᵀΦ_s + λI)⁻¹ Φ_sᵀ Y_s`, where the system is smaller. Differentiable in every tensor argument.

    Args:
        features: Student features of the distilled images, `(M, F)`, without the constant.
        targets: Targets of the distilled images, `(M, D)`.
        ridge: Regularisation relative to the trace of the kernel, at least 0, or the whole form of the regression.
        solve: Solves the regularised system; an engine has one that is quicker on a GPU.
        kernel: The kernel where the system is solved in the space of images.

    Raises:
        ValueError: The shapes do not fit each other.
    """

    def __init__(
        self,
        features: Tensor,
        targets: Tensor,
        ridge: float | Ridge = 1e-6,
        solve: Solver = solve_ridge,
        kernel: Kernel = linear_kernel,
    ) -> None:
        if {features.ndim, targets.ndim} != {2} or len(features) != len(targets):
            raise ValueError(_misfit(features, targets))
        self.features, self.targets, self._kernel = features, targets, kernel
        form = ridge if isinstance(ridge, Ridge) else Ridge(ridge)
        self._constant = int(form.constant)
        self.in_feature_space = len(features) > features.shape[1] + self._constant
        if self.in_feature_space:
            ones = features.new_ones(len(features), self._constant)
            longer = torch.cat([features, ones], 1)  # (M, F + 1), or (M, F) without the constant
            # It has the trace of the kernel.
            system, right = longer.T @ longer, longer.T @ targets
        else:
            system, right = kernel(features, features, self._constant), targets
        trace = (system.detach() if form.detached else system).trace()
        self.solution = solve(system, right, form.share * trace)  # (F + 1, D), (F, D) or (M, D)

    def predict(self, real_features: Tensor) -> Tensor:
        """Returns targets `(B, D)`, in the dtype of the features, of real images with student features `(B, F)`.

        Raises:
            ValueError: Their width `F` differs from that of the distilled images.
        """
        if real_features.ndim != 2 or real_features.shape[1] != self.features.shape[1]:
            raise ValueError(_misfit(self.features, self.targets, real_features))
        if self.in_feature_space and self._constant:
            return torch.addmm(self.solution[-1], real_features, self.solution[:-1])
        if self.in_feature_space:
            return real_features @ self.solution
        return self._kernel(real_features, self.features, self._constant) @ self.solution

    def loss(self, real_features: Tensor, real_targets: Tensor, outer: Outer = squared_error) -> Tensor:
        """Returns a loss of the predictions, a scalar in the dtype of the features; by default the mean squared error.

        Args:
            real_features: Student features of the real images, `(B, F)`.
            real_targets: Teacher features of the same real images, `(B, D)`.
            outer: The loss.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        prediction = self.predict(real_features)
        if prediction.shape != real_targets.shape:
            raise ValueError(
                f"real targets of shape {tuple(prediction.shape)} (B, D) are required, got {tuple(real_targets.shape)}"
            )
        return outer(prediction, real_targets)


def predict(distilled_features: Tensor, targets: Tensor, real_features: Tensor, ridge: float | Ridge = 1e-6) -> Tensor:
    """Returns the predictions `(B, D)` of `Regression`, in one call."""
    return Regression(distilled_features, targets, ridge).predict(real_features)


def outer_loss(
    distilled_features: Tensor,
    targets: Tensor,
    real_features: Tensor,
    real_targets: Tensor,
    ridge: float | Ridge = 1e-6,
) -> Tensor:
    """Returns the outer loss of KRR-ST, `Regression.loss`, in one call."""
    return Regression(distilled_features, targets, ridge).loss(real_features, real_targets)


def _misfit(*arrived: Tensor) -> str:
    shapes = ", ".join(str(tuple(part.shape)) for part in arrived)
    return f"distilled features (M, F), targets (M, D) and real features (B, F) are required, got {shapes}"
