"""Kernel ridge regression from a distilled set to real images: the outer objective of KRR-ST.

Letters, with these meanings in every file: `N` real images, `M` distilled images, `B` a batch of real images, `D`
target width, `F` student feature width, `P` students in the pool, `T` the age at which a student is renewed; `C, H, W`
as usual.

Source: Lee et al., "Self-Supervised Dataset Distillation for Transfer Learning", ICLR 2024, arXiv 2310.06511, the
outer problem of section 3; the constants follow the authors' released code.
"""

import torch
from torch import Tensor


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


def predict(distilled_features: Tensor, targets: Tensor, real_features: Tensor, ridge: float = 1e-6) -> Tensor:
    """Predicts targets of real images by a kernel ridge regression fitted on the distilled pairs.

    `K_rs (K_ss + λI)⁻¹ Y_s` with `λ = ridge · trace(K_ss)`; the trace is detached and not divided by `M`. LU with
    pivoting solves the system: in float32 the rounding of `K_ss` can exceed `λ`, and Cholesky would then fail.

    Args:
        distilled_features: Student features of the distilled images, `(M, F)`, without the constant.
        targets: Targets of the distilled images, `(M, D)`.
        real_features: Student features of the real images, `(B, F)`, without the constant.
        ridge: Regularisation relative to the trace of the kernel, at least 0.

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
    k_ss = linear_kernel(distilled_features, distilled_features)  # (M, M)
    k_rs = linear_kernel(real_features, distilled_features)  # (B, M)
    penalty = ridge * k_ss.detach().trace()
    identity = torch.eye(k_ss.shape[0], dtype=k_ss.dtype, device=k_ss.device)
    prediction: Tensor = k_rs @ torch.linalg.solve(k_ss + penalty * identity, targets)
    return prediction


def outer_loss(
    distilled_features: Tensor, targets: Tensor, real_features: Tensor, real_targets: Tensor, ridge: float = 1e-6
) -> Tensor:
    """Returns the mean squared error, over `B` and `D`, of the regression on real images.

    Differentiable in every tensor argument; the distiller passes real features without a graph.

    Args:
        distilled_features: Student features of the distilled images, `(M, F)`; the constant 1 is appended here.
        targets: Targets of the distilled images, `(M, D)`.
        real_features: Student features of the real images, `(B, F)`.
        real_targets: Teacher features of the same real images, `(B, D)`.
        ridge: Regularisation relative to the trace of the kernel, at least 0.

    Returns:
        A scalar in the dtype of the arguments (float32 or float64).

    Raises:
        ValueError: The shapes do not fit each other.
    """
    prediction = predict(distilled_features, targets, real_features, ridge)
    if prediction.shape != real_targets.shape:
        raise ValueError(
            f"real targets of shape {tuple(prediction.shape)} (B, D) are required, got {tuple(real_targets.shape)}"
        )
    return (prediction - real_targets).square().mean()
