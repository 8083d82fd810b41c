"""The solver of ridge regressions on a GPU: Cholesky and products of blocks, with nothing to wait for."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssdd_hub.distill import krr


def solve_ridge(matrix: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
    """Returns `(A + λI)⁻¹ B` of a symmetric `A`, on the CPU by the reference solver; differentiable once on a GPU."""
    if not matrix.is_cuda:
        return krr.solve_ridge(matrix, right, penalty)
    solution: Tensor = _RidgeSolution.apply(matrix, right, penalty)
    return solution


class _RidgeSolution(torch.autograd.Function):
    """The same on a GPU: one factorisation serves both directions, and the host waits for nothing.

    By Cholesky, which is much quicker than LU there; where it fails the solution is NaN.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
        system = matrix.clone()
        system.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(system)
        ctx.inverse = inverse = invert_triangular(factor)
        solution = torch.where(failed == 0, inverse.T @ (inverse @ right), torch.nan)
        ctx.save_for_backward(solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (solution,) = ctx.saved_tensors
        adjoint = ctx.inverse.T @ (ctx.inverse @ gradient)
        return -adjoint @ solution.T, adjoint, None


def invert_triangular(factor: Tensor, block: int = 32) -> Tensor:
    """Inverts a lower triangular matrix by products of blocks, which a GPU does quicker than substitution.

    `[[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [-C⁻¹ B A⁻¹, C⁻¹]]`, from the blocks of the diagonal on, pair by pair.

    Args:
        factor: `(n, n)`.
        block: Size of the first blocks, which are solved by substitution.
    """
    size = len(factor)
    count = 1 << (max(1, -(-size // block)) - 1).bit_length()
    padded = torch.eye(count * block, dtype=factor.dtype, device=factor.device)
    padded[:size, :size] = factor
    first = padded.view(count, block, count, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    identity = torch.eye(block, dtype=factor.dtype, device=factor.device).expand_as(first)
    inverse = torch.linalg.solve_triangular(first.contiguous(), identity, upper=False)  # (count, block, block)
    while count > 1:
        count, block = count // 2, block * 2
        half = block // 2
        pairs = padded.view(count, block, count, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        upper, lower = inverse[0::2], inverse[1::2]
        inverse = torch.cat(
            [
                torch.cat([upper, torch.zeros_like(upper)], 2),
                torch.cat([-lower @ pairs[:, half:, :half] @ upper, lower], 2),
            ],
            1,
        )
    whole: Tensor = inverse[0]
    return whole[:size, :size]
