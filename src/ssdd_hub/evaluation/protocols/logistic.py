"""Multinomial logistic regression by preconditioned L-BFGS, on any device."""

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ssdd_hub.evaluation.protocols.base import require_finite

CHUNK = 4096  # rows multiplied at a time, which bounds the memory beside the features
Linear = tuple[Tensor, Tensor]
"""Weight `(C, F)` and bias `(C,)`."""


class Frame(NamedTuple):
    """Coordinates of features along their principal directions, in which their regression converges quickly."""

    centre: Tensor  # (F,), the mean
    basis: Tensor  # (F, r), orthonormal; r = min(n, F)
    variances: Tensor  # (r,), along the directions

    @classmethod
    def of(cls, features: Tensor) -> "Frame":
        """Returns the frame of features `(n, F)`."""
        # Any orthonormal basis that spans the features has the same ridge solution: rounded directions do no harm.
        centre, span = features.mean(0), None
        if len(features) < features.shape[1]:
            # A solution with a ridge lies in the span of the features, which then has n dimensions at most.
            span = torch.linalg.qr((features - centre).T).Q
        width = features.shape[1] if span is None else span.shape[1]
        covariance = features.new_zeros(width, width)
        for part in torch.split(features, CHUNK):
            rows = part - centre if span is None else (part - centre) @ span
            covariance.addmm_(rows.T, rows, alpha=1 / len(features))
        # Features may be finite, and their squares not.
        variances, directions = _principal(require_finite(covariance))
        return cls(centre, directions if span is None else span @ directions, variances.clamp_min(0))

    def coordinates(self, features: Tensor) -> Tensor:
        """Maps features `(n, F)` to `(n, r)`."""
        result = features.new_empty(len(features), self.basis.shape[1])
        for rows, part in zip(torch.split(result, CHUNK), torch.split(features, CHUNK), strict=True):
            torch.mm(part - self.centre, self.basis, out=rows)
        return result

    def to_principal(self, linear: Linear) -> Linear:
        """Maps weights of features to those of coordinates."""
        return linear[0] @ self.basis, linear[1] + linear[0] @ self.centre

    def from_principal(self, linear: Linear) -> Linear:
        """Maps weights of coordinates to those of features."""
        weight = linear[0] @ self.basis.T
        return weight, linear[1] - weight @ self.centre


def _principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Returns eigenvalues and eigenvectors; in float64 where LAPACK fails, as it may on many equal ones."""
    try:
        variances, directions = torch.linalg.eigh(covariance)
    except RuntimeError:
        variances, directions = torch.linalg.eigh(covariance.double())
    return variances.to(covariance), directions.to(covariance)


def fit_logistic(
    features: Tensor, labels: Tensor, ridge: float, num_classes: int, start: Linear | None = None, **limits: Any
) -> Linear:
    """Fits a multinomial logistic regression: mean cross-entropy plus `ridge / 2` times the squares of the weights.

    The bias is not penalised. scikit-learn's `LogisticRegression(C=1 / (ridge * n))` has the same solution. A class
    without images gets weight 0 and bias minus infinity: it is never predicted.

    Args:
        features: `(n, F)`, float32 or float64; computed in this type on their device.
        labels: `(n,)`, int64, in `[0, num_classes)`.
        ridge: Above 0.
        num_classes: Number of classes `C`.
        start: Weight and bias to start from; zeros by default.
        **limits: Of `fit_principal`.
    """
    frame = Frame.of(features)
    begin = None if start is None else frame.to_principal(start)
    inside = frame.coordinates(features)
    return frame.from_principal(fit_principal(inside, frame.variances, labels, ridge, num_classes, begin, **limits))


def fit_principal(
    features: Tensor,
    variances: Tensor,
    labels: Tensor,
    ridge: float,
    num_classes: int,
    start: Linear | None = None,
    max_iter: int = 1000,
    tolerance: float = 1e-6,
) -> Linear:
    """Fits the regression on coordinates `(n, r)` of a frame, of variances `(r,)`; otherwise as `fit_logistic`.

    Iterations end when one lowers the loss by less than `tolerance` times the loss at the start.
    """
    present, classes = torch.unique(labels.to(features.device), return_inverse=True)
    first = features.new_zeros(len(present), features.shape[1] + 1)
    if start is not None:
        first = torch.cat([start[0], start[1].nan_to_num(neginf=0)[:, None]], 1)[present]
    scale = _preconditioner(features, variances, first, ridge)
    # Tolerances are relative to the loss at the start, which may be tiny, or 0 where there is but one class.
    unit = max(_penalised_loss(features, classes, first, ridge)[0], 1e-12)

    def _loss(flat: "np.ndarray[Any, Any]") -> tuple[float, "np.ndarray[Any, Any]"]:
        loss, gradient = _penalised_loss(features, classes, _unscaled(flat), ridge)
        return loss / unit, (gradient * scale / unit).double().flatten().cpu().numpy()

    def _unscaled(flat: "np.ndarray[Any, Any]") -> Tensor:
        return torch.from_numpy(flat).to(features).view_as(first) * scale

    begin = (first / scale).double().flatten().cpu().numpy()
    limits = {"maxiter": max_iter, "maxfun": 10 * max_iter, "ftol": tolerance, "gtol": 10 * tolerance}
    found = _unscaled(minimize(_loss, begin, method="L-BFGS-B", jac=True, options=limits).x)
    weight = first.new_zeros(num_classes, features.shape[1]).index_copy_(0, present, found[:, :-1])
    return weight, first.new_full((num_classes,), -torch.inf).index_copy_(0, present, found[:, -1])


def _preconditioner(features: Tensor, variances: Tensor, linear: Tensor, ridge: float) -> Tensor:
    """Returns the units `(r + 1,)` of weights and bias in which the loss curves about alike in all directions."""
    odds = torch.addmm(linear[:, -1], features, linear[:, :-1].T).softmax(1)
    curvature = odds.mul_(1 - odds).mean()
    return torch.cat([curvature * variances + ridge, curvature[None]]).clamp_min(1e-12).rsqrt()


def _penalised_loss(features: Tensor, classes: Tensor, linear: Tensor, ridge: float) -> tuple[float, Tensor]:
    """Returns the loss and its gradient to weights and bias `(C, r + 1)`."""
    weight, rows = linear[:, :-1], torch.arange(len(features), device=features.device)
    log_odds = torch.addmm(linear[:, -1], features, weight.T).log_softmax(1)
    loss = ridge / 2 * weight.double().square().sum() - log_odds[rows, classes].double().mean()
    residual = log_odds.exp_()
    residual[rows, classes] -= 1
    residual /= len(features)
    slope = torch.addmm(weight, residual.T, features, beta=ridge)
    return loss.item(), torch.cat([slope, residual.sum(0)[:, None]], 1)
