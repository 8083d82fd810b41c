"""Solver of ridge regressions on a GPU: Cholesky factorisation and products of blocks, without synchronisation."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssdd_hub.distill import krr


def solve_ridge(matrix: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
    """Returns `(A + λI)⁻¹ B` of a symmetric `A`; differentiable once on a GPU. On the CPU, the reference solver."""
    if not matrix.is_cuda:
        return krr.solve_ridge(matrix, right, penalty)
    solution: Tensor = _RidgeSolution.apply(matrix, right, penalty)
    return solution


class _RidgeSolution(torch.autograd.Function):
    """The solution by one Cholesky factorisation, much quicker than LU on a GPU, for both directions.

    Where it fails the solution is NaN: to raise an error the host would have to wait for the GPU.
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (solution,) = ctx.saved_tensors
        adjoint = ctx.inverse.T @ (ctx.inverse @ gradient)
        to_penalty = -(adjoint * solution).sum() if ctx.needs_input_grad[2] else None
        return -adjoint @ solution.T, adjoint, to_penalty


def invert_triangular(factor: Tensor, block: int = 32) -> Tensor:
    """Inverts a lower triangular matrix `(n, n)` by products of blocks, quicker on a GPU than substitution.

    `[[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [-C⁻¹ B A⁻¹, C⁻¹]]`, from diagonal blocks of size `block`, which are solved by
    substitution, to pairs of them, pairs of pairs, and so on.
    """
    size = len(factor)
    # A power of two of blocks: the identity fills up the last ones.
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
        above = torch.cat([upper, torch.zeros_like(upper)], 2)
        inverse = torch.cat([above, torch.cat([-lower @ pairs[:, half:, :half] @ upper, lower], 2)], 1)
    whole: Tensor = inverse[0]
    return whole[:size, :size]
